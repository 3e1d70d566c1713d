"""A merge on disk and in memory.

On disk a merge is a set of named files under one manifest::

    manifest.json                 what it is, where it comes from, sha256 of every other file
    backbone.safetensors          the merged shared tensors
    coefficients.safetensors      Λ [K, L] and the initial Λ
    tints/<task>.safetensors      a task's private tensors: tint layer and head
    configs/<task>/…              the expert's config.json and preprocessor files
    routing/<task>.safetensors    statistics of its pool, to tell its examples from others
    signatures.json               who vouches for the manifest, if anybody does
    references/<task>.safetensors what was noted of its answers, to compare new ones with

In memory it is one backbone, whose tensors every task's model shares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tintray.checkpoints.model_folder import (
    GENERATION,
    HEAD_FILE,
    PREPROCESSORS,
    ModelFolder,
    open_model_folder,
)
from tintray.checkpoints.processors import has_tokenizer, processor_in
from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.checkpoints.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tintray.errors import (
    CheckpointError,
    InputError,
    IntegrityError,
    NotFoundError,
    SignatureError,
    SpecError,
    nearest,
)
from tintray.files import file_in, foreign, read_bytes
from tintray.merging.surgery import DOWN, UP, attach
from tintray.models.calling import answer
from tintray.models.factories import is_allowed
from tintray.models.loading import empty_module, load_expert, quiet_transformers
from tintray.models.structure import assign, tied_names
from tintray.new_folder import new_folder
from tintray.published.card import CARD, Form, model_card
from tintray.published.files import (
    BACKBONE,
    COEFFICIENTS,
    MergeFiles,
    config_file,
    reference_file,
    tint_file,
)
from tintray.published.manifest import MANIFEST, MAX_MANIFEST, Manifest, TaskEntry
from tintray.published.routing import open_router
from tintray.published.signatures import MAX_SIGNATURES, SIGNATURES, rewritten
from tintray.references.observing import Observed
from tintray.references.reference import Reference
from tintray.routing.features import features
from tintray.routing.router import Route, Router
from tintray.seals import seal
from tintray.tinting.stored_tints import decode
from tintray.tinting.tint_layers import with_low_rank


class Merge(MergeFiles):
    """A published merge: its tasks, and for each a model whose backbone all of them share.

    Parameters
    ----------
    manifest, fetch, url, signatures
        See :class:`MergeFiles`.
    factory
        The factory that the caller lets run, if the merge is of modules of one.
    """

    def __init__(
        self,
        manifest: Manifest,
        fetch: Callable[[str], Path],
        url: str,
        factory: str | None = None,
        *,
        signatures: Callable[[], bytes] = bytes,
    ) -> None:
        super().__init__(manifest, fetch, url, signatures=signatures)
        self._trusted = factory
        self._models: dict[str, nn.Module] = {}
        self._sureness: dict[str, Callable[[float], float] | None] = {}

    @property
    def factory(self) -> str | None:
        """What builds the modules, if they are none of transformers'; None otherwise.

        Raises SpecError if neither the caller nor the configuration lets it run: the merge may be a
        stranger's.
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

        Raises NotFoundError with the nearest name, if the merge has no such task.
        """
        for task in self.manifest.tasks:
            if task.name == name:
                return task
        raise NotFoundError(
            f"the merge {self.url} has no task '{name}'{nearest(name, self.tasks)}; it has "
            f"{', '.join(self.tasks)}"
        )

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
        adapter = self.json(ADAPTER_CONFIG)
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
        """A task's private tensors by name, in the precision that models compute in."""
        self.task(task)
        stored = self.tensors(tint_file(task))
        with foreign(f"{self.url}/{tint_file(task)} holds no tint", IntegrityError):
            return decode(stored)

    def config(self, task: str) -> dict[str, Any]:
        """The ``config.json`` of a task's expert."""
        self.task(task)
        return self.json(config_file(task, "config.json"))

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

            how = self.json(written)
            with foreign(f"{self.url}/{written} cannot be used", IntegrityError):
                module.generation_config = GenerationConfig.from_dict(how)
        return module.requires_grad_(False).eval()

    def predict(self, task: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the model of ``task`` answers to a batch, such as logits [N, classes].

        ``inputs`` are named as its :meth:`processor` names them.
        """
        if task not in self._models:
            self._models[task] = self.for_task(task)
        with torch.inference_mode():
            return answer(self._models[task], inputs)

    @cached_property
    def router(self) -> Router:
        """Tells which task an example is of; see ``open_router`` for what it raises."""
        return open_router(self)

    def route(self, inputs: Mapping[str, Tensor], nearest: int = 3) -> list[Route]:
        """Which task each of a batch's examples is of, by its inputs alone; ``nearest`` are named.

        ``inputs`` are named as the :meth:`processor` of any of the tasks names them. The model is
        not run. Raises NotFoundError, InputError as ``open_router`` and ``features`` do.
        """
        with torch.inference_mode():
            return self.router.route(features(inputs), nearest)

    def judge(self, routes: Sequence[Route], observed: Observed) -> list[Route]:
        """Routes of N examples once their likeliest tasks have answered them.

        ``observed`` is what was noted of the answers: an example of which its task is less sure
        than of its own looks more foreign. Routes stay as they are where nothing is kept of how
        sure the task was.
        """
        entropies = observed.numbers.get("entropy")
        if entropies is None:
            return list(routes)
        judged = []
        for route, entropy in zip(routes, entropies.tolist(), strict=True):
            task = route.nearest[0][0]
            if task not in self._sureness:
                reference = self.reference(task)
                self._sureness[task] = None if reference is None else reference.sureness()
            surer = self._sureness[task]
            judged.append(route if surer is None else self.router.judge(route, surer(entropy)))
        return judged

    def reference(self, task: str) -> Reference | None:
        """What was noted of a task's answers when the merge was made; None if nothing is kept."""
        name = reference_file(task)
        if name not in self.manifest.files:
            return None
        return Reference.read(self.tensors(name), f"{self.url}/{name}")

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

    def export(self, task: str | None, directory: Path) -> Path:
        """Write one task's model for ``transformers.from_pretrained``, or all for ``tintray.load``.

        The latter, where ``task`` is None, is what was published, with one backbone for all tasks.

        Raises InputError if the task has a module that no transformers model has, or as
        ``new_folder``; StorageError if it cannot be written to the end.
        """
        module: Any = None if task is None else self.exportable(task)
        with new_folder(directory, or_empty=True) as partial:
            if task is None:
                for name in self.manifest.files:
                    self.copy(name, partial / name)
                (partial / MANIFEST).write_bytes(seal(self.manifest.to_json(), MANIFEST))
                if signed := rewritten(self.signatures(), self.url):
                    (partial / SIGNATURES).write_bytes(signed)
            elif hasattr(module, "save_pretrained"):
                module.save_pretrained(partial)
            else:  # a factory's: what its weights are called is all that there is to say
                own = {name: p.detach() for name, p in module.state_dict().items()}
                for alias in tied_names(module):
                    own.pop(alias)
                (partial / "model.safetensors").write_bytes(tensors_as_bytes(own))
                config = json.dumps(self.config(task), indent=2)
                (partial / "config.json").write_text(config, encoding="utf-8")
            if task is not None:
                self.copy_configs(task, partial)
            form: Form = "zero_shot" if (partial / HEAD_FILE).is_file() else "model"
            card = model_card(self.manifest, task, form=form)
            (partial / CARD).write_text(card, encoding="utf-8")
        return directory

    def exportable(self, task: str) -> nn.Module:
        """The model of a task, as :meth:`for_task`, for a file that others read.

        Raises InputError if it has a module that no transformers model has.
        """
        if DOWN in self.tint(task):
            raise InputError(
                f"task '{task}' of {self.url} has a surgery module before its head, which no "
                "transformers model has; use the merge itself: tintray.load(...).for_task(...)"
            )
        quiet_transformers()
        return self.for_task(task)

    def config_files(self, task: str) -> list[str]:
        """A task's configuration files, as far as they are of those that a fit keeps.

        Others, such as custom code that somebody put beside them, are never used.
        """
        known = ("config.json", GENERATION, *PREPROCESSORS)
        names = [config_file(task, name) for name in known]
        return [name for name in names if name in self.manifest.files]

    def copy_configs(self, task: str, folder: Path) -> None:
        """A task's preprocessor files, by their own names."""
        prefix = config_file(task, "")
        for name in self.config_files(task):
            if name != config_file(task, "config.json"):
                self.copy(name, folder / name.removeprefix(prefix))


def open_folder(
    folder: Path, parse: Callable[[bytes], Any] | None = None, factory: str | None = None
) -> Merge:
    """Open a merge that lies in an ordinary folder.

    ``parse`` makes a document of its manifest's bytes, and may look whether they were altered.

    Raises NotFoundError if the folder has no readable manifest: it holds no merge, or one that was
    never published.
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

    return Merge(
        *(Manifest.read(document, str(folder)), fetch, str(folder), factory),
        signatures=lambda: signatures_in(folder),
    )


def signatures_in(folder: Path) -> bytes:
    """The content of a folder's ``signatures.json``; none where there is none."""
    where = f"{folder}/{SIGNATURES}"
    with foreign(f"{where} cannot be used", SignatureError):
        path = file_in(folder, SIGNATURES, "the merge")
    if path is None:
        return b""
    return read_bytes(path, where, limit=MAX_SIGNATURES, error=SignatureError)
