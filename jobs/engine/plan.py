"""What a job needs before it starts: bytes of memory by member, of object store and of disk.

Pure functions over plain sizes: a job that cannot fit is refused with numbers, and with what would
make it fit. Estimates are from above, but not far: see ``docs/cluster.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tintray.errors import SpecError
from tintray.limits import size_text
from tintray.numerics.choices import Format
from tintray.numerics.layout import Layout
from tintray.vectors.stacks import stack_bytes

MIB = 2**20
FLOAT = 4

PROCESS_BYTES = 420 * MIB
"""A process with torch and transformers loaded, before it holds anything (measured: 360 to 400)."""

SHARD_BYTES = 512 * MIB
"""Task vectors that one shard has at least, where the job file does not say how many there are."""

IN_PROCESS_BYTES = 128 * MIB
"""Up to so much, the coordinator's process holds all task vectors, where the job file names no
shards: a round then waits for half as many calls, and nobody pays for a process more."""

CARD_BYTES = 768 * MIB
"""What CUDA and its libraries keep of a GPU's memory for themselves."""

SUMMED_BYTES = 64 * MIB
"""Of gradients that a shard takes with one call. Large ones it sums and lets go as they come; of
small pieces it takes many, since the coordinator makes every call."""

_HEADROOM = 1.5  # of an object store over what is alive in it: Ray spills from 80 % on
_LEAST_STORE = 256 * MIB
_MOST_WAYS = 4
_TRAINED = 4  # copies of what is trained: itself, its gradient and Adam's two moments
_KEPT = 2  # copies of the best state and of an average, where a fit is watched
_START = 1  # a copy of what a tint layer was before it learned


@dataclass(frozen=True)
class JobSize:
    """How large a job is, in the numbers that its memory depends on."""

    layout: Layout  # of the shared backbone
    tasks: int
    private: int  # numbers in what each task owns: tint layer and head
    groups: int
    activation_bytes: int = 0  # what a forward pass of one micro-batch keeps for the backward pass
    checkpointed_bytes: int = 0  # the same where layers compute their activations again
    pool_bytes: int = 0  # pools and test sets of all tasks in memory
    corrected: bool = False  # whether a shared correction is learned
    adapters: Sequence[int] = ()  # bytes of each task vector that is a product: it stays in memory
    learned: bool = True  # whether there are rounds; else a rule merges
    held: bool = True  # whether shards hold the task vectors
    outputs: int = 1  # backbones that the rule gives
    merging: int = 0  # what it takes for the largest tensor, with its statistics
    measuring: int = 0  # what a member takes that measures a method's statistics
    directing: int = 0  # what a shard takes for a tensor where a fit starts from a method
    floor: bool = False  # whether merges without learning are tried after the rounds

    def vector_bytes(self, format: Format) -> int:
        """All task vectors in memory, or the directions of a method that come in their place."""
        if not self.held:
            return 0
        products = () if self.directing else self.adapters  # directions are whole
        whole = self.tasks - len(products)
        each = (stack_bytes(slot.shape, whole, format) for slot in self.layout.slots)
        return sum(products) + sum(each)

    @property
    def stored_bytes(self) -> int:
        """The artifacts that the job may have to write: task vectors in float32."""
        whole = self.tasks - len(self.adapters)
        return FLOAT * self.layout.numel * whole + sum(self.adapters)


@dataclass(frozen=True)
class ClusterSize:
    """What a job runs on: the whole cluster, and bytes that are free."""

    cpus: int
    memory: int  # for members and the object store, on all nodes together
    nodes: int = 1
    gpus: int = 0
    card: int | None = None  # bytes of a GPU, the fullest, that a worker can have; None: not known
    object_store: int | None = None  # of the smallest node; None where it is made to measure
    disk: int | None = None  # where the artifacts go; None where that is not known


@dataclass(frozen=True)
class Choice:
    """What the job file settles; None is what the plan may choose."""

    workers: int | None = None
    threads: int = 1
    shards: int | None = None
    gpus: float = 0  # of each worker: none, one, or its part of one
    format: Format = "f32"
    checkpointed: bool | None = None


@dataclass(frozen=True)
class Plan:
    """How a job is laid out, and what each part of it takes at most, in bytes."""

    workers: int
    shards: int
    mapped: bool  # whether task vectors stay in their files, since they would not fit in memory
    format: Format
    worker: int  # memory of the largest of each
    shard: int
    object_store: int  # what is alive in shared memory at most, on each node
    disk: int  # what the artifacts take
    nodes: int = 1
    pools: int = 0  # what of a worker's memory is pools
    in_process: bool = False  # whether the one shard is in the coordinator's process
    checkpointed: bool = False  # whether layers compute their activations again, to take less
    card: int = 0  # what a worker and the shard beside it keep on their GPU; 0 without one
    driver: int = 0  # backbones that the driver holds, beside the process itself
    mergers: int = 0  # members that measure for a method, or merge by it
    merger: int = 0  # memory of each

    @property
    def memory(self) -> int:
        """Bytes of all members, of every node's object store, and of the driver's backbones."""
        members = self.workers * self.worker + self.shards * self.shard
        members += self.mergers * self.merger + self.driver
        return members + self.nodes * self.object_store


def lay_out(job: JobSize, cluster: ClusterSize, choice: Choice) -> Plan:
    """Lay a job out over a cluster, whether it fits there or not.

    Task vectors in float32 stay in their files where memory would not hold them beside the rest; a
    method's directions have no files. Activations are computed again where the job would not fit
    otherwise. What lies on GPUs is counted in memory, too: it passes through.
    """
    less = replace(job, activation_bytes=job.checkpointed_bytes)
    if choice.checkpointed:
        return replace(_laid_out(less, cluster, choice), checkpointed=True)
    plan = _laid_out(job, cluster, choice)
    if choice.checkpointed is None and job.checkpointed_bytes and _problem(plan, cluster):
        other = replace(_laid_out(less, cluster, choice), checkpointed=True)
        return plan if _problem(other, cluster) else other
    return plan


def _laid_out(job: JobSize, cluster: ClusterSize, choice: Choice) -> Plan:
    most = cluster.gpus if choice.gpus else cluster.cpus // choice.threads
    if 0 < choice.gpus < 1:  # no two processes of a job can share a GPU and exchange tensors
        most = 1
    workers = min(choice.workers or max(1, most), job.groups)
    total = job.vector_bytes(choice.format)
    shards = choice.shards or max(1, min(cluster.cpus, total // SHARD_BYTES))
    if choice.gpus:  # a shard lives beside a worker, on its GPU
        shards = min(choice.shards or workers, workers)
    shards = shards if job.held else 0
    mergers = 0 if job.learned else min(most, len(job.layout.slots))
    if job.measuring:
        mergers = max(mergers, min(most, job.tasks))
    method = max(job.merging, job.measuring)  # one after the other
    in_process = (
        bool(shards) and choice.shards is None and not choice.gpus and total <= IN_PROCESS_BYTES
    )
    plan = Plan(
        workers=workers,
        shards=shards,
        mapped=False,
        format=choice.format,
        worker=worker_bytes(job, workers),
        shard=shard_bytes(job, shards, total) - (PROCESS_BYTES if in_process else 0),
        object_store=(
            alive_bytes(job.layout.numel, job.groups)
            if job.learned
            else job.outputs * FLOAT * job.layout.numel
        ),
        disk=job.stored_bytes,
        nodes=cluster.nodes,
        pools=job.pool_bytes // workers,
        in_process=in_process,
        card=card_bytes(job, workers, shards, total) if choice.gpus else 0,
        driver=driver_bytes(job),
        mergers=mergers,
        merger=method + (0 if choice.gpus else PROCESS_BYTES),  # on GPUs, beside a worker
    )
    mappable = job.held and choice.format == "f32" and not job.directing
    if mappable and plan.memory > cluster.memory:
        shard = shard_bytes(job, shards, sum(job.adapters))
        return replace(plan, mapped=True, in_process=False, shard=shard)
    return plan


def worker_bytes(job: JobSize, workers: int) -> int:
    """Memory of a worker: it does not grow with K but by the tasks that it hosts.

    Three backbones are held: the base (where it cannot stay in its file, or what is computed of
    it), an expert while it is asked, and the gradient where there are rounds.
    """
    private = job.private * -(-job.tasks // workers)
    if not job.learned:
        held = FLOAT * (2 * job.layout.numel + private)
    else:
        trained = (_TRAINED + _KEPT + _START) * private
        held = FLOAT * (3 * job.layout.numel + trained) + job.activation_bytes
    return PROCESS_BYTES + held + job.pool_bytes // workers


def shard_bytes(job: JobSize, shards: int, vectors: int) -> int:
    """Memory of a shard: its part of the task vectors, of θ₀, of θ and of the summed gradient.

    Where a shared correction is learned, also that and what its steps take. Where a fit starts from
    a method, also what that takes for the largest tensor, whichever shard has it.
    """
    if not shards:
        return 0
    backbones = 3 + (_TRAINED + _KEPT if job.corrected else 0)
    spread = (vectors + backbones * FLOAT * job.layout.numel) // shards
    return PROCESS_BYTES + spread + job.directing


def driver_bytes(job: JobSize) -> int:
    """Memory of the driver beyond its process.

    Of a rule its backbones, and one more where each task has its own. Of a fit θ, and the base
    where it cannot stay in its file; with a floor the base, a direction, a merge and the best.
    """
    own = job.outputs + (1 if job.outputs > 1 else 0)
    backbones = (4 if job.floor else 2) if job.learned else own
    return FLOAT * backbones * job.layout.numel


def card_bytes(job: JobSize, workers: int, shards: int, vectors: int) -> int:
    """Memory of a GPU: of a worker without its pools, and of the shard beside it.

    Rounds are recorded, for which each keeps θ and gradients in places of their own. Pools lie on
    the card too where they find room (see ``tintray.pools.stacked_pools``).
    """
    worker = worker_bytes(job, workers) - PROCESS_BYTES - job.pool_bytes // workers
    held = shard_bytes(job, shards, vectors) - PROCESS_BYTES - job.directing if shards else 0
    recorded = FLOAT * job.layout.numel * (1 + 2 / shards) if job.learned else 0
    # Before rounds something is measured, then a rule has a tensor of all tasks, maybe in float64.
    method = max(job.measuring, 2 * max(job.merging, job.directing))
    return CARD_BYTES + worker + held + int(recorded) + method


def alive_bytes(parameters: int, groups: int) -> int:
    """What a round has alive in shared memory at most: θ twice, and a gradient of every group.

    Two rounds overlap in θ alone: gradients of one round are gone before the next is merged.
    """
    return (2 + groups) * FLOAT * parameters


def gradients_at_once(piece: int) -> int:
    """How many gradients a shard takes with one call, of which it has a piece of so many bytes."""
    return max(1, SUMMED_BYTES // max(1, piece))


def object_store_bytes(parameters: int, groups: int) -> int:
    """The object store of a cluster that is started for a job: what is alive, with headroom."""
    return int(_HEADROOM * alive_bytes(parameters, groups)) + _LEAST_STORE


def check_plan(job: JobSize, cluster: ClusterSize, choice: Choice) -> Plan:
    """The plan of a job that fits; else ``SpecError`` with bytes, and with what would make it."""
    plan = lay_out(job, cluster, choice)
    if problem := _problem(plan, cluster):
        raise SpecError(f"the job does not fit: {problem}; {_advice(job, cluster, choice, plan)}")
    return plan


def _advice(job: JobSize, cluster: ClusterSize, choice: Choice, plan: Plan) -> str:
    if _problem(plan, replace(cluster, disk=None)) is None:  # all that lacks is disk
        return "free some of it, or name a store with more room"
    ways = [text for text, other in _ways(job, choice) if _fits(other, cluster)]
    return f"what would fit: {'; or '.join(ways[:_MOST_WAYS])}" if ways else "use a larger machine"


def _problem(plan: Plan, cluster: ClusterSize) -> str | None:
    if plan.memory > cluster.memory:
        worker, shard, memory = map(size_text, (plan.worker, plan.shard, plan.memory))
        pools = f" ({size_text(plan.pools)} of it pools)" if 10 * plan.pools > plan.worker else ""
        parts = [f"{plan.workers} worker{_s(plan.workers)} of {worker}{pools}"]
        if plan.shards:
            held = f"({plan.format} task vectors)"
            parts.append(f"{plan.shards} shard{_s(plan.shards)} of {shard} {held}")
        if plan.mergers:
            each = size_text(plan.merger)
            parts.append(f"{plan.mergers} member{_s(plan.mergers)} of {each} for the method")
        parts.append(f"backbones of {size_text(plan.driver)} in the driver")
        return (
            f"{', '.join(parts)} and an object store of "
            f"{size_text(plan.nodes * plan.object_store)} are {memory} of memory, and "
            f"{size_text(cluster.memory)} are free"
        )
    if cluster.card is not None and plan.card > cluster.card:
        return (
            f"a worker and its shard keep {size_text(plan.card)} on their GPU "
            f"({plan.format} task vectors), and {size_text(cluster.card)} are free there"
        )
    if cluster.object_store is not None and plan.object_store > cluster.object_store:
        return (
            f"a round keeps {size_text(plan.object_store)} in the object store, and each node has "
            f"{size_text(cluster.object_store)} (ray start --object-store-memory gives it more)"
        )
    if cluster.disk is not None and plan.disk > cluster.disk:
        return (
            f"the task vectors take {size_text(plan.disk)} on the disk of the store, and "
            f"{size_text(cluster.disk)} are free"
        )
    return None


def _fits(other: tuple[JobSize, Choice, int], cluster: ClusterSize) -> bool:
    job, choice, n = other
    cpus, memory = cluster.cpus * n, cluster.memory * n
    more = replace(cluster, nodes=cluster.nodes * n, cpus=cpus, memory=memory)
    return _problem(lay_out(job, more, choice), more) is None


def _ways(job: JobSize, choice: Choice) -> Iterator[tuple[str, tuple[JobSize, Choice, int]]]:
    """Changes to a job file that make it smaller, the mildest first.

    Among the formats ``f32`` is the smallest in memory: it can stay in its files.
    """
    formats: tuple[Format, ...] = ("bf16", "int8", "int4", "f32")
    others = formats[1 + formats.index(choice.format) if choice.format in formats[:-1] else 0 :]
    for workers in (choice.workers, 1):
        fewer = ["cluster.workers: 1"] if workers != choice.workers else []
        for format in (choice.format, *others):
            changed = [] if format == choice.format else [f"merge.task_vectors: {format}"]
            if fewer or changed:
                text = " with ".join([*changed, *fewer])
                yield text, (job, replace(choice, format=format, workers=workers), 1)
    if choice.checkpointed is False and job.checkpointed_bytes:
        again = replace(choice, checkpointed=True)
        yield "cluster.gradient_checkpointing: true", (job, again, 1)
    if choice.gpus and job.activation_bytes:
        for share in (4, 16):
            fewer_at_once = replace(job, activation_bytes=job.activation_bytes // share)
            yield f"1/{share} of the examples at once (fit.micro_batch)", (fewer_at_once, choice, 1)
    if job.groups > 2:
        yield "fit.groups: 2", (replace(job, groups=2), choice, 1)
    if job.pool_bytes:
        halved = replace(job, pool_bytes=job.pool_bytes // 2)
        yield "half of each pool (pool.split: train[:50%])", (halved, choice, 1)
    for nodes in (2, 4, 8):
        yield f"{nodes} such nodes (cluster.address)", (job, choice, nodes)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
