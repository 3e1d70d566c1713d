"""How large a job is: from its file, its base and the headers of what it names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from tintray.checkpoints.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tintray.data.counting import extent
from tintray.data.source import DataSource
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location
from tintray.jobs.engine.base_model import SplitModel
from tintray.jobs.engine.featcal import KIND as FEATCAL
from tintray.jobs.engine.grouping import group_count, micro_batch
from tintray.jobs.engine.plan import FLOAT, Choice, ClusterSize, JobSize, Plan, check_plan
from tintray.jobs.engine.plan import object_store_bytes as store_bytes
from tintray.jobs.engine.resources import free_disk
from tintray.merging import Recipe, recipe
from tintray.merging.files.memory import PIECES, needed_bytes
from tintray.numerics.layout import Layout, Slot
from tintray.numerics.precision import resolve
from tintray.tasks.kind import Kind
from tintray.tasks.registry import find_kind

_TOKENS_PER_BYTE = 0.25  # of English text
_BYTES_PER_TOKEN = 16  # an id and a mask, int64 each
_PADDING = 2  # texts are padded to the longest of their pool
_COMPRESSED = 3  # bytes of text in one byte of a .gz or .parquet
_SIDE = 224  # of images, where no configuration tells


def make_plan(spec: JobSpec, base: SplitModel, cluster: ClusterSize) -> Plan:
    """How the job is laid out over a cluster, and the memory that it takes there, if it fits."""
    store = Path(spec.store.path) if spec.store.path else None
    place = replace(cluster, disk=None if store is None else free_disk(store))
    wanted = spec.cluster
    choice = Choice(
        workers=None if wanted.workers == "auto" else max(1, wanted.workers),
        threads=wanted.threads_per_worker,
        shards=None if wanted.shards == "auto" else wanted.shards,
        gpus=wanted.gpus_per_worker,
        checkpointed=wanted.gradient_checkpointing,
        format=spec.merge.task_vectors,
    )
    return check_plan(job_size(spec, base), place, choice)


def object_store_needed(spec: JobSpec, base: SplitModel) -> int:
    """Bytes of shared memory for a cluster that is started for the job."""
    return store_bytes(base.partition.layout.numel, group_count(spec))


def job_size(spec: JobSpec, base: SplitModel) -> JobSize:
    """The size of a job on its base."""
    module = base.partition.module
    below = tuple(f"{path}." for path in base.partition.private)
    private = sum(p.numel() for name, p in module.named_parameters() if name.startswith(below))
    config, each = _config(module), of_an_example(spec, module)
    examples, wide = micro_batch(spec, each), _bytes_each(spec)
    return JobSize(
        base.partition.layout,
        tasks=len(spec.tasks),
        private=private,
        groups=min(len(spec.tasks), group_count(spec)),
        pool_bytes=pool_bytes(spec, config),
        activation_bytes=each * examples,
        checkpointed_bytes=activation_bytes(config, examples, wide, checkpointed=True),
        corrected=bool(spec.merge.learned and spec.fit.correction_lr),
        adapters=list(adapter_bytes(spec).values()),
        learned=spec.merge.learned,
        held=holds_task_vectors(spec),
        outputs=_outputs(spec),
        merging=0 if spec.merge.learned else _method_bytes(spec, base.partition.layout),
        measuring=_measuring_bytes(spec, base.partition.layout),
        directing=_directing_bytes(spec, base.partition.layout),
        floor=spec.merge.learned and spec.fit.has_floor,
    )


def holds_task_vectors(spec: JobSpec) -> bool:
    """Whether shards hold the job's task vectors: a rule alone reads them tensor by tensor.

    FeatCal starts from their sum, and beside backbones for each task lies the base.
    """
    method = job_recipe(spec).method
    return spec.merge.learned or method.own is not None or FEATCAL in method.needs


def job_recipe(spec: JobSpec) -> Recipe:
    """The recipe of the method that runs alone, or that the coefficients start from."""
    return recipe(spec.merge.directions, spec.merge.parameters, seed=spec.fit.seed)


def starts_from_method(spec: JobSpec) -> bool:
    """Whether a fit's coefficients multiply a method's directions, and not the task vectors."""
    return spec.merge.learned and spec.merge.directions not in ("task_arithmetic", "average")


def _method_bytes(spec: JobSpec, layout: Layout, piece: int | None = PIECES[0]) -> int:
    """What a rule takes for the largest tensor: with its statistics, its result and a copy of it.

    A rule that takes pieces has ``piece`` numbers at a time; whole tensors, if that is None.
    """
    found, tasks = job_recipe(spec), len(spec.tasks)

    def needed(slot: Slot) -> int:
        size, measured = slot.stop - slot.start, _numbers_measured(spec, slot.shape)
        results = tasks if spec.merge.learned else 2 * _outputs(spec)
        return needed_bytes(found, size, tasks, piece or size) + FLOAT * (
            results * size + sum(measured.values())
        )

    return max(map(needed, layout.slots), default=0)


def _directing_bytes(spec: JobSpec, layout: Layout) -> int:
    """What a shard takes for a tensor while directions come in the place of task vectors."""
    return _method_bytes(spec, layout, None) if starts_from_method(spec) else 0


def _measuring_bytes(spec: JobSpec, layout: Layout) -> int:
    """What a member takes that measures what the method needs: of one task, or of all together.

    A model or a task vector, and three times what is measured: sums, what comes of them, a file.
    """
    if spec.merge.learned and not starts_from_method(spec):
        return 0
    kept: Counter[str] = Counter()
    for slot in layout.slots:
        kept.update(_numbers_measured(spec, slot.shape, of_one=True))
    return FLOAT * (layout.numel + 3 * max(kept.values())) if kept else 0


def _numbers_measured(
    spec: JobSpec, shape: tuple[int, ...], *, of_one: bool = False
) -> dict[str, int]:
    """How many numbers there are of each kind of statistics of a tensor, or of one task's."""
    method = job_recipe(spec).method
    matrix = shape if len(shape) == 2 else (0, 0)
    decomposition = min(matrix) * (sum(matrix) + 1)
    sizes = {"gram": matrix[1] ** 2, "svd": decomposition, "svd_sum": decomposition}
    kinds = dict.fromkeys((*method.needs, *method.uses))
    return {
        kind: sizes.get(kind, math.prod(shape))
        * (1 if of_one or kind in (FEATCAL, "svd_sum") else len(spec.tasks))
        for kind in kinds
    }


def _outputs(spec: JobSpec) -> int:
    """How many backbones the job's rule gives."""
    return 1 if job_recipe(spec).method.own is None else len(spec.tasks)


def of_an_example(spec: JobSpec, module: nn.Module) -> int:
    """Bytes that the forward pass of one example keeps for the backward pass."""
    return activation_bytes(_config(module), 1, _bytes_each(spec))


def _bytes_each(spec: JobSpec) -> int:
    return 4 if resolve(spec.fit.precision, spec.cluster.device) == "float32" else 2


def _config(module: nn.Module) -> dict[str, Any]:
    known = getattr(module, "config", None)
    # How many labels there are is a property, of which the dictionary is silent.
    labels = {"num_labels": getattr(known, "num_labels", 1)}
    return known.to_dict() | labels if known else {}


def activation_bytes(
    config: Mapping[str, Any], examples: int, bytes_each: int, *, checkpointed: bool = False
) -> int:
    """What a transformer's forward pass keeps for the backward pass; 0 for a model unlike one.

    Per token and layer s·b·h·(34 + 5·a·s/h) bytes in 16 bit (Korthikanti et al., arXiv
    2205.05198); where layers are checkpointed, their inputs and all of one layer, twice. ``config``
    is the model's ``config.json``.
    """
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads = int(config["num_attention_heads"])
        if "patch_size" in config:
            tokens = (int(config["image_size"]) // int(config["patch_size"])) ** 2 + 1
        else:
            tokens = min(512, int(config["max_position_embeddings"]))
    except (KeyError, TypeError, ValueError):
        return 0
    of_layer = tokens * examples * (34 * hidden + 5 * heads * tokens)
    if checkpointed:
        inputs = layers * tokens * examples * 2 * hidden
        return (inputs + 2 * of_layer) * bytes_each // 2  # of one layer, and gradients of as much
    return layers * of_layer * bytes_each // 2


def pool_bytes(spec: JobSpec, config: Mapping[str, Any]) -> int:
    """Bytes of all tasks' pools and test sets, and of what the experts answer on them.

    From above, but not far, where ``config`` tells the size of images and the number of answers; 0
    for data that is not on this machine yet.
    """
    return sum(
        _bytes_of(data.source(), find_kind(task.kind), config)
        for task in spec.tasks
        for data in (task.pool, task.test)
        if data is not None
    )


def _bytes_of(source: DataSource, kind: Kind, config: Mapping[str, Any]) -> int:
    found = extent(source)
    if found.examples is None:  # a table: of texts, mostly
        packed = _COMPRESSED if source.path.endswith((".gz", ".parquet")) else 1
        tokens = found.file_bytes * packed * _TOKENS_PER_BYTE
        return int(tokens * _BYTES_PER_TOKEN * _PADDING)
    size = config.get("image_size")
    side = max(size) if isinstance(size, list | tuple) and size else int(size or 0)
    pixels = side**2 or (math.prod(found.shape[:2]) if found.shape else _SIDE**2)
    channels = int(config.get("num_channels") or 3)
    answers = int(config.get("num_labels") or 1) * (pixels if kind.per_pixel else 1)
    return found.examples * (channels * pixels + FLOAT * answers)


def adapter_bytes(spec: JobSpec) -> Mapping[str, int]:
    """Bytes in float32 of what each adapter changes, by task; without tasks of whole models.

    Only headers are read. Beside adapters that are here, experts in a bucket or on the hub are
    taken for adapters of the largest's size; else they count as whole models, as does what cannot
    be read.
    """
    places = {task.name: Location(task.expert).path for task in spec.tasks}
    sizes = {name: None if path is None else _adapter(path) for name, path in places.items()}
    found = {name: size for name, size in sizes.items() if size is not None}
    remote = [name for name, path in places.items() if path is None]
    return found | dict.fromkeys(remote if found else [], max(found.values(), default=0))


def _adapter(folder: Path) -> int | None:
    """Bytes of an adapter's tensors in float32; None of a folder that holds no readable adapter."""
    if not (folder / ADAPTER_CONFIG).is_file() or (folder / "model.safetensors").is_file():
        return None
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return None  # whoever opens it says what is wrong with it
    return FLOAT * sum(map(math.prod, shapes))
