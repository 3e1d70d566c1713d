"""What holds where neither the job file nor the command line says otherwise.

``TINTRAY_*`` variables come first, then ``~/.config/tintray/config.toml`` (``XDG_CONFIG_HOME``
moves it, ``TINTRAY_CONFIG`` names another file), then the built-in defaults. Built-in defaults and
variables start from the folder that the user stands in, unlike a job file's relative paths, which
start from the job file: so ``tintray run examples/digits.yaml`` and a plain ``tintray list`` look
at the same store. Relative paths in the configuration file start from its own folder.

Whatever here cannot be what it is to be is a ``SpecError`` that names where it was written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tintray.configuration import config_file as config_file
from tintray.configuration import variable as variable
from tintray.errors import SpecError, nearest
from tintray.files import foreign, read_bytes
from tintray.jobs.config.locations import Location, catalog_location, store_location
from tintray.limits import Limits, memory_bytes, size_text

Value = TypeVar("Value")

STORE = "./tintray-data"
LEASE_SECONDS = 60.0
_MAX_BYTES = 1 << 20  # a configuration file has a dozen lines
LIMITS = tuple(field.name for field in fields(Limits))
"""The budgets of what is read: settings of the same names as the fields of ``Limits``."""


@dataclass(frozen=True)
class SettingNote:
    """What a setting means, what holds without it, and one that somebody might write."""

    meaning: str
    default: str
    example: str | int


_BUDGETS = {
    "max_pool_bytes": "Memory that one pool or test set may take, as read and as prepared.",
    "max_examples": "Examples of one pool or test set, and rows of a table that are read for them.",
    "max_text_bytes": "Text of one csv, tsv, json or jsonl table, once decompressed.",
    "max_line_bytes": "One example of such a table.",
    "max_image_bytes": "One image file, as it is stored.",
    "max_image_pixels": "Pixels of one image, before it is resized.",
    "max_yaml_bytes": "A job file or mergekit file.",
    "max_yaml_nodes": "Values and keys of one; an alias counts as what it stands for.",
    "max_yaml_depth": "Levels of sections and lists within one another in it.",
    "max_seconds": "Seconds that a tokenizer, with its chat template, may compute over a pool.",
}


def _budget_note(name: str) -> SettingNote:
    most = getattr(Limits(), name)
    if name.endswith("_bytes"):
        return SettingNote(_BUDGETS[name], size_text(most), size_text(2 * most).replace(" ", ""))
    return SettingNote(_BUDGETS[name], str(most), 2 * most)


SETTINGS = {
    "store": SettingNote(
        "The artifact store: a folder or an s3:// URL.", STORE, "s3://models/tintray"
    ),
    "catalog": SettingNote(
        "The database of jobs and merges.",
        "catalog.db in the store, if that is a folder",
        "postgresql+psycopg://tintray@db/tintray",
    ),
    "address": SettingNote(
        "The dashboard of the Ray cluster that jobs are submitted to.", "none", "http://head:8265"
    ),
    "python": SettingNote(
        "The Python of tintray on the cluster's nodes.",
        "where it is on the submitting machine",
        "/opt/tintray/bin/python",
    ),
    "allow_factories": SettingNote(
        "Modules, or module:function names, whose code a merge or a job may run.",
        "none",
        "my_models",
    ),
    "trust": SettingNote(
        "Those whose merges are used: a file of public keys, one a line with a name, or such lines "
        "themselves.",
        "none",
        "trusted-keys",
    ),
    "require_signed": SettingNote(
        "Whether a merge is opened only if one of them has signed it: `true` or `false`.",
        "false",
        "true",
    ),
    "signing_key": SettingNote(
        "The private key that `tintray sign` signs with: a file or, in the variable, the key.",
        "none",
        "~/.ssh/id_ed25519",
    ),
    "lease_seconds": SettingNote(
        "Seconds without a sign of life after which a job is lost.", f"{LEASE_SECONDS:g}", 120
    ),
    **{name: _budget_note(name) for name in LIMITS if name in _BUDGETS},
    "data_roots": SettingNote(
        f"Folders, separated by `{os.pathsep}`, in which tables may name image files besides the "
        "table's own folder.",
        "none",
        "/data/images",
    ),
}
"""Every setting: its name in the configuration file, and, after ``TINTRAY_``, as a variable."""


CATALOG_VARIABLE, ADDRESS_VARIABLE = variable("catalog"), variable("address")
LEASE_VARIABLE, FACTORIES_VARIABLE = variable("lease_seconds"), variable("allow_factories")
SIGNED_VARIABLE = variable("require_signed")


@dataclass(frozen=True)
class Setting:
    """A setting as somebody wrote it, where that was, and the folder that it starts from."""

    value: str
    origin: str
    folder: Path

    def read(self, as_value: Callable[[str, Path], Value]) -> Value:
        """What it means; an error names where it was written."""
        try:
            return as_value(self.value, self.folder)
        except (ValueError, OSError, RuntimeError) as error:  # a loop of links, nobody's home
            raise SpecError(f"{self.origin}: {error}") from error


def _here(value: str, origin: str) -> Setting:
    return Setting(value, origin, Path.cwd())


def _read_config(path: Path) -> dict[str, str]:
    """The settings in a configuration file; none if it is not there."""
    if str(path) == os.devnull:  # as people say that there is none
        return {}
    try:
        content = read_bytes(path, "the configuration", limit=_MAX_BYTES, error=SpecError)
    except FileNotFoundError:
        return {}
    import tomllib  # many have none

    with foreign(f"{path}: not valid TOML", SpecError):
        found: dict[str, Any] = tomllib.loads(content.decode("utf-8"))
        texts = {name: str(value) for name, value in found.items()}  # of a number, if not too long
    for name, value in found.items():
        if name not in SETTINGS:
            known, hint = ", ".join(SETTINGS), nearest(name, SETTINGS)
            raise SpecError(f"{path}: expected one of {known}, found '{name}'{hint}")
        if name == "require_signed" and isinstance(value, bool):
            continue
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise SpecError(f"{path}: {name}: expected text or a number, found {value!r}")
    return texts


def setting(name: str) -> Setting | None:
    """A setting from its variable, else from the configuration file; None if it is in neither."""
    return _chosen([name]).get(name)


def _chosen(names: Sequence[str]) -> dict[str, Setting]:
    """Those of the settings that somebody has written; the file is read once, if it is needed."""
    written = {name: os.environ.get(variable(name)) for name in names}
    found = {name: _here(value, variable(name)) for name, value in written.items() if value}
    if len(found) < len(names):
        path = config_file()
        for name, value in _read_config(path).items():
            if name in names and name not in found:
                found[name] = Setting(value, f"{path}: {name}", path.absolute().parent)
    return found


def lease_seconds() -> float:
    """How long the lease of a job outlives the last sign of life of the process that runs it."""
    found = setting("lease_seconds")
    if found is None:
        return LEASE_SECONDS
    try:
        seconds = float(found.value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SpecError(f"{found.origin}: expected a number of seconds, found {found.value!r}")
    return seconds


def share_factories() -> str:
    """Let this process and those that it starts know which factories may run; their names."""
    name = FACTORIES_VARIABLE
    listed = (os.environ.get(name, ""), _read_config(config_file()).get("allow_factories", ""))
    words = " ".join(dict.fromkeys(" ".join(listed).replace(",", " ").split()))
    if words:
        os.environ[name] = words
    return words


def limits() -> Limits:
    """The budgets of what is read, as the settings have them; each is at least 1."""
    chosen: dict[str, Any] = {
        name: found.read(partial(_limit, name)) for name, found in _chosen(LIMITS).items()
    }
    return Limits(**chosen)


def _limit(name: str, value: str, folder: Path) -> int | tuple[str, ...]:
    if name == "data_roots":
        parts = [part for part in value.split(os.pathsep) if part]
        return tuple(str((folder / Path(part).expanduser()).resolve()) for part in parts)
    written = value.strip()
    if written.isdecimal() and len(written) < 20:  # bytes, pixels, nodes or seconds
        return memory_bytes(int(written))
    if name.endswith("_bytes"):
        return memory_bytes(written)
    raise ValueError(f"expected a whole number, 1 or more, found {value!r}")


def default_store() -> Location:
    """The artifact store of a job that names none."""
    return (setting("store") or _here(STORE, "store")).read(store_location)


def default_catalog(store: Location) -> Location:
    """The catalog of a job that names none: ``catalog.db`` in its store, if that is a folder."""
    beside = store if store.path else Location(str(Path(STORE).resolve()))
    built_in = _here(f"sqlite:///{beside}/catalog.db", "catalog")
    return (setting("catalog") or built_in).read(catalog_location)


def located(name: str, written: str) -> Location:
    """What the option ``--store`` or ``--catalog`` means; it starts from the current folder."""
    locate = store_location if name == "store" else catalog_location
    return _here(written, f"--{name}").read(locate)


def chosen(store: str | None, catalog: str | None) -> tuple[Location, Location]:
    """The store and catalog of a command, from its options ``--store`` and ``--catalog``."""
    where = default_store() if store is None else located("store", store)
    return where, default_catalog(where) if catalog is None else located("catalog", catalog)


def chosen_destination(store: str, catalog: str | None) -> tuple[Location, Location | None]:
    """The store that something is copied to, and its catalog: ``catalog.db`` in it, if a folder."""
    where = _here(store, "DEST").read(store_location)
    if catalog is not None:
        return where, _here(catalog, "--dest-catalog").read(catalog_location)
    return where, Location(f"sqlite:///{where}/catalog.db") if where.path else None


def chosen_address(option: str | None, in_job_file: str | None) -> str | None:
    """The cluster to submit to: the option's, the job file's, the setting's, or Ray's own."""
    if option is not None:
        return option
    if in_job_file is not None and (in_job_file == "auto" or in_job_file.startswith("http")):
        return in_job_file
    if found := setting("address"):
        return found.value
    return os.environ.get("RAY_API_SERVER_ADDRESS") or None


def is_own_cluster(address: str | None) -> bool:
    """Whether a cluster is this machine's or one that its user has chosen, by its host.

    A job file and a merge may name any. Whoever joins one runs what its members send back.
    """
    if address is None or address in ("auto", "local"):
        return True
    found = setting("address")
    chosen = [os.environ.get(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")]
    known = {_host(one) for one in [*chosen, found.value if found else None] if one}
    return _host(address) in known - {""}


def _host(address: str) -> str:
    try:
        return urlsplit(address if "://" in address else f"//{address}").hostname or ""
    except ValueError:  # brackets that are no IPv6 address
        return ""


def write_config(values: dict[str, str], *, replace: bool = False, dry_run: bool = False) -> Path:
    """Write the configuration file; only its owner may read it, for a URL may have a password.

    A file that is there already is refused, unless it is to be replaced.
    """
    from tintray.jobs.config.reference import schema_file

    path, written = config_file(), dict(values)
    for name, locate in (("store", store_location), ("catalog", catalog_location)):
        if name in values:  # resolved: the file's folder is not where the user stands
            written[name] = str(_here(values[name], name).read(locate))
    if path.exists() and not replace:
        raise SpecError(f"{path} is there already; give --force to write it anew")
    if dry_run:
        return path
    # A JSON text is a TOML one too.
    lines = [f"#:schema {schema_file('configuration').as_uri()}\n"]
    lines += [
        f"# {SETTINGS[name].meaning}\n{name} = {json.dumps(text)}\n"
        for name, text in written.items()
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.part")
        unfinished.touch(mode=0o600)
        unfinished.chmod(0o600)
        unfinished.write_text("\n".join(lines), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise SpecError(f"{path}: it cannot be written ({error.strerror})") from error
    return path
