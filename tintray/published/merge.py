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

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tintray.checkpoints.model_folder import (
    GENERATION,
    HEAD_FILE,
    PREPROCESSORS,
    ModelFolder,
    open_model_folder,
)
from tintray.checkpoints.processors import processor_in
from tintray.checkpoints.tokenizers import has_tokenizer
from tintray.checkpoints.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tintray.errors import (
    CheckpointError,
    InputError,
    IntegrityError,
    NotFoundError,
    SpecError,
    StorageError,
    nearest,
)
from tintray.files import MAX_JSON, check_new, file_in, foreign, open_regular, read_bytes, reason
from tintray.merging.surgery import DOWN, UP, attach
from tintray.models.factories import is_allowed
from tintray.models.loading import empty_module, load_expert, quiet_transformers
from tintray.models.structure import assign, tied_names
from tintray.published.card import CARD, Form, model_card
from tintray.published.manifest import MANIFEST, MAX_MANIFEST, Manifest, TaskEntry
from tintray.tinting.tint_layers import with_low_rank

_CHUNK = 4 << 20

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
        What its ``manifest.json`` says.
    fetch
        Gives the local path of a file of the merge, by its name in the manifest.
    url
        Where it was loaded from, for messages.
    factory
        The factory that the caller lets run, if the merge is of modules of one.
    """

    def __init__(
        self,
        manifest: Manifest,
        fetch: Callable[[str], Path],
        url: str,
        factory: str | None = None,
    ) -> None:
        self.manifest = manifest
        self.url = url
        self._fetch = fetch
        self._trusted = factory
        self._verified: dict[str, Path] = {}

    @property
    def factory(self) -> str | None:
        """What builds the modules, if they are none of transformers'; None otherwise.

        Raises
        ------
        SpecError
            If neither the caller nor the configuration lets it run: the merge may be a stranger's.
        """
        named = self.manifest.job.factory
        if named is None or named == self._trusted or is_allowed(named):
            return named
        raise SpecError(
            f"{self.url} says that {named!r} builds its modules, and no code runs because a merge "
            f"says so; if you trust it, give --factory {named} (factory= in Python), or put it "
            "into allow_factories of the configuration"
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks it serves."""
        return tuple(task.name for task in self.manifest.tasks)

    def task(self, name: str) -> TaskEntry:
        """What the manifest says of a task.

        Raises
        ------
        NotFoundError
            With the nearest name, if the merge has no such task.
        """
        for task in self.manifest.tasks:
            if task.name == name:
                return task
        raise NotFoundError(
            f"the merge {self.url} has no task '{name}'{nearest(name, self.tasks)}; it has "
            f"{', '.join(self.tasks)}"
        )

    def file(self, name: str) -> Path:
        """Local path of one of the merge's files, its sha256 checked on first use.

        Who reads it later may find another file there: :meth:`read` and :meth:`tensors` do not.

        Raises
        ------
        IntegrityError
            If the bytes are not those that the manifest names.
        """
        if name not in self._verified:
            with self._open(name) as (_, path):
                self._verified[name] = path
        return self._verified[name]

    def read(self, name: str) -> bytes:
        """The content of one of the merge's small files; see :meth:`file`."""
        with self._open(name, limit=MAX_JSON) as (file, _):
            return file.read()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """All tensors of one of the merge's files; see :meth:`file`."""
        with self._open(name) as (file, path):
            itself = Path(f"/proc/self/fd/{file.fileno()}")  # whatever has its name by now
            with foreign(f"{self.url}/{name} is no safetensors file", IntegrityError):
                return read_tensors(itself if itself.exists() else path)

    @contextmanager
    def _open(self, name: str, limit: int | None = None) -> Iterator[tuple[BinaryIO, Path]]:
        """One of the merge's files, open and at its beginning, its bytes those of the manifest."""
        listed, where = self.manifest.files.get(name), f"{self.url}/{name}"
        if listed is None:
            raise IntegrityError(f"{self.url} has no file {name}; publish the merge again")
        if limit is not None and listed.size > limit:
            raise IntegrityError(f"{where} has more than the {limit:,} bytes that it may have")
        try:
            path = self._fetch(name)
            file = open_regular(path)
        except FileNotFoundError as error:
            raise IntegrityError(
                f"{self.url} lacks the file {name} that its manifest names; restore the "
                "file or publish the merge again"
            ) from error
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"{where} cannot be read ({reason(error)}); restore the file or publish the merge "
                "again"
            ) from error
        with file:
            before = _state(file)
            if before[0] != listed.size:
                raise IntegrityError(
                    f"{where} is damaged: it has {before[0]:,} bytes, the manifest says "
                    f"{listed.size:,}; restore the file or publish the merge again"
                )
            found = _sha256(file)
            if found != listed.sha256:
                raise IntegrityError(
                    f"{where} is damaged: its sha256 is {found[:12]}…, the manifest says "
                    f"{listed.sha256[:12]}…; restore the file or publish the merge again"
                )
            file.seek(0)
            yield file, path
            if _state(file) == before:  # else linked, touched, or written to
                return
            file.seek(0)
            if _sha256(file) != found:
                raise IntegrityError(f"{where} was written to while it was read; try again")

    @cached_property
    def backbone(self) -> dict[str, Tensor]:
        """The shared tensors by name; read once, shared by every task's model.

        Of a merge that was exported as an adapter: those of its base, with the adapter added.
        """
        if BACKBONE in self.manifest.files:
            return self.tensors(BACKBONE)
        with foreign(f"{self.url}: its adapter cannot be put on its base", IntegrityError):
            return self._adapted()

    def _adapted(self) -> dict[str, Tensor]:
        known = self.manifest.base
        base = open_model_folder(known.source, role=f"the base of {self.url}")
        if base.digest() != known.sha256:
            raise IntegrityError(
                f"{known.source} is not the base that {self.url} belongs to: its sha256 is "
                f"{base.digest()[:12]}…, the manifest says {known.sha256[:12]}…; put that back"
            )
        path, config = self.file(ADAPTER_WEIGHTS), self.config(self.tasks[0])
        adapter = self._json(ADAPTER_CONFIG)
        adapter["modules_to_save"] = None  # they are the tasks' own, in their tints
        like = ModelFolder(path.parent, config, (path,), adapter=adapter, base=base)
        module = load_expert(like, f"the adapter of {self.url}")
        private = tuple(f"{path}." for path in self.manifest.private_modules)
        state = module.state_dict()
        names = state.keys() - tied_names(module).keys()
        return {name: state[name] for name in sorted(names) if not name.startswith(private)}

    @cached_property
    def coefficients(self) -> Tensor:
        """Λ [K, L], rows in the order of ``tasks``, columns in that of the manifest's units."""
        found = self.tensors(COEFFICIENTS).get("coefficients")
        shape = (len(self.tasks), len(self.manifest.units))
        if found is None or found.shape != shape or not found.is_floating_point():
            has = "none" if found is None else f"{found.dtype} {list(found.shape)}"
            raise IntegrityError(
                f"{self.url}/{COEFFICIENTS}: expected the coefficients {list(shape)} of its tasks "
                f"and units, found {has}; publish the merge again"
            )
        return found

    def tint(self, task: str) -> dict[str, Tensor]:
        """A task's private tensors by name: tint layer and head."""
        self.task(task)
        return self.tensors(tint_file(task))

    def config(self, task: str) -> dict[str, Any]:
        """The ``config.json`` of a task's expert."""
        self.task(task)
        return self._json(config_file(task, "config.json"))

    def _json(self, name: str) -> dict[str, Any]:
        content = self.read(name)
        with foreign(f"{self.url}/{name} is not valid JSON", IntegrityError):
            found = json.loads(content.decode("utf-8-sig"))
        if not isinstance(found, dict):
            raise IntegrityError(f"{self.url}/{name} must hold a JSON object")
        return found

    def for_task(self, task: str) -> nn.Module:
        """An ordinary module of the expert's class, in evaluation mode, that answers for ``task``.

        Its backbone tensors are the merge's own, in memory once for all tasks; only the private
        ones are its own. Training it would change the backbone under every other task.
        """
        made_by = self.factory
        config, backbone, own = self.config(task), self.backbone, self.tint(task)
        where = f"{self.url}: the files of task '{task}' are not those of one model"
        with foreign(where, IntegrityError):
            tensors = with_low_rank(backbone, own)
            numbers = sum(tensor.numel() for tensor in tensors.values())
            module = empty_module(config, made_by, numbers=numbers)
            operation = {name: tensors.pop(name) for name in (DOWN, UP) if name in tensors}
            assign(module, tensors)
            if operation:
                attach(module, operation)
        written = config_file(task, GENERATION)
        if written in self.manifest.files:
            from transformers import GenerationConfig

            how = self._json(written)
            with foreign(f"{self.url}/{written} cannot be used", IntegrityError):
                module.generation_config = GenerationConfig.from_dict(how)
        return module.requires_grad_(False).eval()

    def processor(self, task: str, *, text: bool | None = None) -> Any:
        """The image processor, or the tokenizer, of the task's expert; None if it needs none.

        With ``text`` it is the tokenizer; left out, that is so where the expert has no other.
        """
        from tempfile import TemporaryDirectory

        self.task(task)
        prefix = config_file(task, "")
        own = self.config_files(task)
        if own == [config_file(task, "config.json")] and self.manifest.job.factory:
            return None
        # A file from a bucket lies under its hash; transformers goes by names.
        with TemporaryDirectory(prefix="tintray-") as folder:
            for name in own:
                self.copy(name, Path(folder) / name.removeprefix(prefix))
            images = config_file(task, "preprocessor_config.json") in own
            chosen = has_tokenizer(Path(folder)) and not images if text is None else text
            try:
                found = processor_in(Path(folder), f"task '{task}'", text=chosen)
            except CheckpointError as error:  # the folder is none that anybody knows
                said = str(error).replace(folder, f"{self.url}/{prefix.rstrip('/')}")
                raise CheckpointError(said) from error
        if hasattr(found, "name_or_path"):
            found.name_or_path = f"{self.url}/{prefix.rstrip('/')}"
        return found

    def export(self, task: str, directory: Path) -> Path:
        """Write one task's model as a folder that ``transformers.from_pretrained`` loads.

        Raises
        ------
        InputError
            If ``directory`` exists and is not empty or cannot be made, or if the task has a module
            that no transformers model has.
        StorageError
            If it cannot be written to the end.
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

    def config_files(self, task: str) -> list[str]:
        """A task's configuration files, as far as they are of those that a fit keeps.

        Others, such as custom code that somebody put beside them, are never used.
        """
        known = ("config.json", GENERATION, *PREPROCESSORS)
        names = [config_file(task, name) for name in known]
        return [name for name in names if name in self.manifest.files]

    def copy(self, name: str, target: Path) -> None:
        """Copy one of the merge's files, verified, to a path below a folder that may not exist."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._open(name) as (file, _), target.open("wb") as copied:
            shutil.copyfileobj(file, copied, _CHUNK)

    def copy_configs(self, task: str, folder: Path) -> None:
        """A task's preprocessor files, by their own names."""
        prefix = config_file(task, "")
        for name in self.config_files(task):
            if name != config_file(task, "config.json"):
                self.copy(name, folder / name.removeprefix(prefix))

    def export_all(self, directory: Path, manifest: bytes) -> Path:
        """Write the whole merge as one folder that ``tintray.load`` opens: all tasks, one backbone.

        ``manifest`` are the bytes of its ``manifest.json`` as it was published.

        Raises
        ------
        InputError
            If ``directory`` exists and is not empty, or cannot be made.
        StorageError
            If it cannot be written to the end.
        """
        with new_folder(directory) as partial:
            for name in self.manifest.files:
                self.copy(name, partial / name)
            (partial / CARD).write_text(model_card(self.manifest), encoding="utf-8")
            (partial / "manifest.json").write_bytes(manifest)
        return directory


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A hidden folder to write in; when the block ends well, it becomes ``directory``.

    Raises
    ------
    InputError
        If ``directory`` exists and is not empty, or cannot be made there.
    StorageError
        If it cannot be written to the end.
    """
    check_new(directory, or_empty=True)
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{directory} cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _state(file: BinaryIO) -> tuple[int, int, int]:
    """What changes when somebody writes to an open file (and when it is linked or touched)."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def open_folder(
    folder: Path, parse: Callable[[bytes], Any] | None = None, factory: str | None = None
) -> Merge:
    """Open a merge that lies in an ordinary folder.

    ``parse`` makes a document of its manifest's bytes, and may look whether they were altered.

    Raises
    ------
    NotFoundError
        If the folder has no readable manifest: it holds no merge, or one that was never published.
    """
    path = folder / MANIFEST
    try:
        content = read_bytes(path, "the manifest", limit=MAX_MANIFEST, error=NotFoundError)
    except FileNotFoundError as error:
        raise NotFoundError(f"{folder} holds no merge: it has no manifest.json") from error
    with foreign(f"{path} is not valid JSON", NotFoundError):
        document = (parse or json.loads)(content)

    def fetch(name: str) -> Path:
        with foreign(f"{folder}/{name} cannot be used", IntegrityError):
            found = file_in(folder, name, "the merge")
        if found is None:
            raise FileNotFoundError(name)
        return found

    return Merge(Manifest.read(document, str(folder)), fetch, str(folder), factory)


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
