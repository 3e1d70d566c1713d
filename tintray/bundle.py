"""A merge on disk and in memory.

On disk a merge is a set of named files under one manifest::

    manifest.json                 what it is, where it comes from, sha256 of every other file
    backbone.safetensors          the merged shared tensors
    coefficients.safetensors      Λ [K, L] and the initial Λ
    tints/<task>.safetensors      a task's private tensors: tint layer and head
    configs/<task>/…              the expert's config.json and preprocessor files

In memory it is one backbone, whose tensors every task's model shares.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tintray.card import CARD, Form, model_card
from tintray.checkpoints import (
    GENERATION,
    HEAD_FILE,
    Checkpoint,
    file_sha256,
    open_checkpoint,
)
from tintray.errors import InputError, IntegrityError, NotFoundError, StorageError, nearest
from tintray.model_folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tintray.models import (
    assign,
    empty_module,
    load_expert,
    quiet_transformers,
    tied_names,
)
from tintray.pools import processor_in
from tintray.surgery import DOWN, UP, attach
from tintray.tint import with_low_rank

FORMAT = "tintray-merge"
FORMAT_VERSION = 1

BACKBONE = "backbone.safetensors"
COEFFICIENTS = "coefficients.safetensors"


def tint_file(task: str) -> str:
    """Name of the file with a task's private tensors."""
    return f"tints/{task}.safetensors"


def config_file(task: str, name: str) -> str:
    """Name of one of a task's configuration files."""
    return f"configs/{task}/{name}"


class Merge:
    """A published merge: lazily read, verified on reading, its backbone shared by all tasks.

    Parameters
    ----------
    manifest
        The parsed ``manifest.json``.
    fetch
        Gives the local path of a file of the merge, by its name in the manifest.
    url
        Where it was loaded from, for messages.
    """

    def __init__(self, manifest: dict[str, Any], fetch: Callable[[str], Path], url: str) -> None:
        written = manifest.get("format_version") if isinstance(manifest, dict) else None
        if not isinstance(written, int) or manifest.get("format") != FORMAT:
            raise NotFoundError(f"{url} is not a merge: its manifest has no format {FORMAT!r}")
        if written > FORMAT_VERSION:
            raise NotFoundError(
                f"{url} was written in format {written}; this version of tintray reads up to "
                f"{FORMAT_VERSION}; upgrade tintray"
            )
        for name in manifest.get("files", ()):
            if not _stays_inside(name):
                raise NotFoundError(
                    f"{url} lists the file {name!r}, which would lie outside of the merge; "
                    "expected a plain relative path, do not use this merge"
                )
        self.manifest = manifest
        self.url = url
        self._fetch = fetch
        self._verified: dict[str, Path] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks it serves."""
        return tuple(task["name"] for task in self.manifest["tasks"])

    def task(self, name: str) -> dict[str, Any]:
        """What the manifest says of a task.

        Raises
        ------
        NotFoundError
            With the nearest name, if the merge has no such task.
        """
        for task in self.manifest["tasks"]:
            if task["name"] == name:
                found: dict[str, Any] = task
                return found
        raise NotFoundError(
            f"the merge {self.url} has no task '{name}'{nearest(name, self.tasks)}; it has "
            f"{', '.join(self.tasks)}"
        )

    def file(self, name: str) -> Path:
        """Local path of one of the merge's files, its sha256 checked on first use.

        Raises
        ------
        IntegrityError
            If the bytes are not those that the manifest names.
        """
        if name not in self._verified:
            path = self._fetch(name)
            expected = self.manifest["files"][name]["sha256"]
            try:
                found = file_sha256(path)
            except FileNotFoundError as error:
                raise IntegrityError(
                    f"{self.url} lacks the file {name} that its manifest names; restore the "
                    "file or publish the merge again"
                ) from error
            if found != expected:
                raise IntegrityError(
                    f"{self.url}/{name} is damaged: its sha256 is {found[:12]}…, the manifest says "
                    f"{expected[:12]}…; restore the file or publish the merge again"
                )
            self._verified[name] = path
        return self._verified[name]

    @cached_property
    def backbone(self) -> dict[str, Tensor]:
        """The shared tensors by name; read once, shared by every task's model.

        Of a merge that was exported as an adapter: those of its base, with the adapter added.
        """
        if BACKBONE in self.manifest["files"]:
            return read_tensors(self.file(BACKBONE))
        return self._adapted()

    def _adapted(self) -> dict[str, Tensor]:
        known = self.manifest["base"]
        base = open_checkpoint(known["source"], role=f"the base of {self.url}")
        if base.digest() != known["sha256"]:
            raise IntegrityError(
                f"{known['source']} is not the base that {self.url} belongs to: its sha256 is "
                f"{base.digest()[:12]}…, the manifest says {known['sha256'][:12]}…; put that back"
            )
        path, config = self.file(ADAPTER_WEIGHTS), self.config(self.tasks[0])
        adapter = json.loads(self.file(ADAPTER_CONFIG).read_text())
        like = Checkpoint(path.parent, config, (path,), adapter=adapter, base=base)
        module = load_expert(like, f"the adapter of {self.url}")
        private = tuple(f"{path}." for path in self.manifest["private_modules"])
        state = module.state_dict()
        names = state.keys() - tied_names(module).keys()
        return {name: state[name] for name in sorted(names) if not name.startswith(private)}

    @cached_property
    def coefficients(self) -> Tensor:
        """Λ [K, L], rows in the order of ``tasks``, columns in that of the manifest's units."""
        return read_tensors(self.file(COEFFICIENTS))["coefficients"]

    def tint(self, task: str) -> dict[str, Tensor]:
        """A task's private tensors by name: tint layer and head."""
        self.task(task)
        return read_tensors(self.file(tint_file(task)))

    def config(self, task: str) -> dict[str, Any]:
        """The ``config.json`` of a task's expert."""
        self.task(task)
        config: dict[str, Any] = json.loads(self.file(config_file(task, "config.json")).read_text())
        return config

    def for_task(self, task: str) -> nn.Module:
        """An ordinary module of the expert's class, in evaluation mode, that answers for ``task``.

        Its backbone tensors are the merge's own, in memory once for all tasks; only the private
        ones are its own. Training it would change the backbone under every other task.
        """
        made_by = self.manifest.get("job", {}).get("factory")
        tensors = with_low_rank(self.backbone, self.tint(task))
        numbers = sum(tensor.numel() for tensor in tensors.values())
        module = empty_module(self.config(task), made_by, numbers=numbers)
        operation = {name: tensors.pop(name) for name in (DOWN, UP) if name in tensors}
        assign(module, tensors)
        if operation:
            attach(module, operation)
        written = config_file(task, GENERATION)
        if written in self.manifest["files"]:
            from transformers import GenerationConfig

            how = json.loads(self.file(written).read_text())
            module.generation_config = GenerationConfig.from_dict(how)
        return module.requires_grad_(False).eval()

    def processor(self, task: str, *, text: bool = False) -> Any:
        """The image processor, or the tokenizer, of the task's expert; None if it needs none."""
        from tempfile import TemporaryDirectory

        self.task(task)
        prefix = config_file(task, "")
        own = [n for n in self.manifest["files"] if n.startswith(prefix)]
        if own == [config_file(task, "config.json")] and self.manifest.get("job", {}).get(
            "factory"
        ):
            return None
        # A file from a bucket lies under its hash; transformers goes by names.
        with TemporaryDirectory(prefix="tintray-") as folder:
            for name in self.manifest["files"]:
                if name.startswith(prefix):
                    shutil.copyfile(self.file(name), Path(folder) / name.removeprefix(prefix))
            return processor_in(Path(folder), f"task '{task}'", text=text)

    def export(self, task: str, directory: Path) -> Path:
        """Write one task's model as a folder that ``transformers.from_pretrained`` loads.

        Raises
        ------
        StorageError
            If ``directory`` exists and is not empty, or cannot be written.
        InputError
            If the task has a module that no transformers model has.
        """
        if DOWN in self.tint(task):
            raise InputError(
                f"task '{task}' of {self.url} has a surgery module before its head, which no "
                "transformers model has; use the merge itself: tintray.load(...).for_task(...)"
            )
        module: Any = self.for_task(task)
        quiet_transformers()
        with new_folder(directory) as partial:
            if hasattr(module, "save_pretrained"):
                module.save_pretrained(partial)
            else:  # a factory's: what its weights are called is all that there is to say
                own = {name: p.detach() for name, p in module.state_dict().items()}
                for alias in tied_names(module):
                    own.pop(alias)
                (partial / "model.safetensors").write_bytes(tensors_as_bytes(own))
                config = json.dumps(self.config(task), indent=2)
                (partial / "config.json").write_text(config, encoding="utf-8")
            self.copy_configs(task, partial)
            form: Form = "zero_shot" if (partial / HEAD_FILE).is_file() else "model"
            card = model_card(self.manifest, task, form=form)
            (partial / CARD).write_text(card, encoding="utf-8")
        return directory

    def copy(self, name: str, target: Path) -> None:
        """Copy one of the merge's files, verified, to a path below a folder that may not exist."""
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.file(name), target)

    def copy_configs(self, task: str, folder: Path) -> None:
        """A task's preprocessor files, by their own names."""
        prefix = config_file(task, "")
        for name in self.manifest["files"]:
            if name.startswith(prefix) and name != config_file(task, "config.json"):
                shutil.copyfile(self.file(name), folder / name.removeprefix(prefix))

    def export_all(self, directory: Path, manifest: bytes) -> Path:
        """Write the whole merge as one folder that ``tintray.load`` opens: all tasks, one backbone.

        ``manifest`` are the bytes of its ``manifest.json`` as it was published.

        Raises
        ------
        StorageError
            If ``directory`` exists and is not empty, or cannot be written.
        """
        with new_folder(directory) as partial:
            for name in self.manifest["files"]:
                self.copy(name, partial / name)
            (partial / CARD).write_text(model_card(self.manifest), encoding="utf-8")
            (partial / "manifest.json").write_bytes(manifest)
        return directory


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A hidden folder to write in; when the block ends well, it becomes ``directory``.

    Raises
    ------
    StorageError
        If ``directory`` exists and is not empty, or cannot be written.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise StorageError(f"{directory} exists and is not empty; give a new folder")
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except OSError as error:
        raise StorageError(f"{directory} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _stays_inside(name: str) -> bool:
    """Whether a file's name in a manifest is a path below the merge, on any system."""
    parts = name.replace("\\", "/").split("/")
    return not {"", ".", ".."} & set(parts) and ":" not in parts[0] and "\0" not in name


def open_folder(folder: Path) -> Merge:
    """Open a merge that lies in an ordinary folder.

    Raises
    ------
    NotFoundError
        If the folder has no readable manifest: it holds no merge, or one that was never published.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"{folder} holds no merge: it has no manifest.json") from error
    except ValueError as error:
        raise NotFoundError(f"{folder / 'manifest.json'} is not valid JSON ({error})") from error
    return Merge(manifest, lambda name: folder / name, str(folder))


def tensors_as_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Named tensors as one safetensors file, in a fixed order: equal tensors, equal bytes."""
    ordered = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    data: bytes = save(ordered, metadata={"format": "pt"})
    return data


def read_tensors(path: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Read all, or only the named, tensors of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in (names or file.keys())}


def parameters_of(tensors: Mapping[str, Tensor]) -> int:
    """How many numbers the tensors hold."""
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
