"""Jobs and clusters that are not here, in the numbers that a simulation needs.

What is measured says where; what is assumed says so. Change an assumption here, and run again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from benchmarks.simulate.overhead import Coordinating
from benchmarks.simulate.rounds import Costs, Round
from tintray.jobs.engine.grouping import default_groups, form_groups, spread_groups
from tintray.jobs.engine.plan import FLOAT, JobSize, card_bytes
from tintray.numerics.layout import Layout, build_layout

GIB = 2**30


@dataclass(frozen=True)
class Cluster:
    """Cards on nodes. Rates are of one card, or of one node where they say so."""

    cards: int = 64
    on_a_node: int = 8
    memory: float = 80 * GIB
    passes: float = 173e12
    """Floating-point operations a second of forward and backward: ViT-B/32, 128 images in 19.1 ms
    on one H100 in bfloat16 (docs/cluster.md). Larger models come nearer to the 790e12 of a
    matrix product of 8192."""
    reads: float = 2.3e12
    """Bytes of task vectors a second when merging, measured on the same card."""
    starts: float = 2.4e-3
    """Seconds of a merge, and of a projection, beside reading: with eight task vectors of ViT-B/32
    each took 3.6 ms, of which reading was 1.2."""
    task: float = 0.7e-3
    """Seconds that a task adds to a step: that of eight tasks of ViT-B/32 took 24.7 ms, and their
    passes 19.1."""
    copies: float = 2.8e12
    """Bytes a second of copies on the card, measured."""
    products: float = 60e12
    """Floating-point operations a second in float32, in which LoRA products merge: assumed, from
    the maker's data sheet."""
    network: float = 400e9
    """Bytes a second of a node's network cards, in each direction: assumed."""
    call: float = 1e-3
    """From a call to its being there, over Ray: assumed."""
    bucket: float = 5e9
    """Bytes a second that a node reads from an object store: assumed."""
    request: float = 0.02
    """Seconds until an object store answers: assumed."""
    hashing: float = 1.5e9
    """Bytes a second that one thread hashes: ``Constants`` has what was measured."""

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.cards // self.on_a_node


@dataclass(frozen=True)
class Job:
    """A job by its size.

    Attributes
    ----------
    vector
        Bytes of one task vector as it lies in memory.
    rank
        Of the experts' products; 0 where task vectors are whole.
    example
        Floating-point operations of an example's forward and backward pass.
    drawn
        Tasks of a round; all of them, or ``fit.tasks_per_round``.
    """

    name: str
    layout: Layout
    tasks: int
    vector: float
    example: float
    rank: int = 0
    drawn: int | None = None
    groups: int | None = None
    shards: int | None = None
    batch: int = 16
    private: int = 0

    def group_count(self) -> int:
        """As the job file says, or by default."""
        return min(self.tasks, self.groups or default_groups(self.tasks, self.batch))


def adapters_on_8b(tasks: int = 10_000, rank: int = 16) -> Job:
    """LoRA on all linear layers of a decoder in the shape of Llama 3 8B, texts of 512 tokens."""
    hidden, middle, keys, layers, words = 4096, 14336, 1024, 32, 128_256
    linear = {"q": (hidden, hidden), "k": (keys, hidden), "v": (keys, hidden)}
    linear |= {"o": (hidden, hidden), "gate": (middle, hidden), "up": (middle, hidden)}
    linear |= {"down": (hidden, middle)}
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (words, hidden)}
    for n in range(layers):
        shapes |= {f"layers.{n}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"layers.{n}.norm{i}.weight": (hidden,) for i in (1, 2)}
    layout = build_layout(shapes)
    factors = layers * rank * sum(map(sum, linear.values()))
    computed = layout.numel - words * hidden
    return Job(
        f"{tasks:,} adapters of rank {rank} on 8 B",
        *(layout, tasks, FLOAT * factors, 6.0 * 512 * computed),
        rank=rank,
        private=hidden * 10,
    )


def experts_of_100m(tasks: int = 1_000) -> Job:
    """Whole experts of a vision transformer with 100 M parameters, images of 50 patches."""
    hidden, layers = 832, 12
    shapes: dict[str, tuple[int, ...]] = {"patches.weight": (hidden, 3072)}
    for n in range(layers):
        for name, shape in {"qkv": (3 * hidden, hidden), "o": (hidden, hidden)}.items():
            shapes[f"layers.{n}.{name}.weight"] = shape
        shapes[f"layers.{n}.up.weight"] = 4 * hidden, hidden
        shapes[f"layers.{n}.down.weight"] = hidden, 4 * hidden
    layout = build_layout(shapes)
    return Job(
        f"{tasks:,} whole experts of {layout.numel / 1e6:.0f} M",
        *(layout, tasks, FLOAT * layout.numel, 6.0 * 50 * layout.numel),
        private=hidden * 10,
    )


def round_of(job: Job, cluster: Cluster, coordinating: Coordinating) -> tuple[Round, Costs]:
    """A round of a job whose shards live beside its workers, one of each on a card."""
    groups, drawn = job.group_count(), job.drawn or job.tasks
    stretches = form_groups(drawn, groups)
    workers = spread_groups(stretches, cluster.cards)
    shards = len(job.layout.stretches(job.shards or len(workers)))
    vectors = job.vector * job.tasks
    given = Round(
        parameters=job.layout.numel,
        vector_bytes=vectors,
        groups={n: (job.batch * len(group), len(group)) for n, group in enumerate(stretches)},
        workers=workers,
        shards=shards,
        beside=True,
        nodes=min(cluster.nodes, len(workers)),
    )
    merging = vectors / cluster.reads
    if job.rank:  # two thin matrices are multiplied, of all tasks together
        linear = sum(s.stop - s.start for s in job.layout.slots if "layers" in s.name)
        merging = max(merging, 2.0 * job.tasks * job.rank * linear / cluster.products)
    merging += shards * cluster.starts
    costs = Costs(
        micro_batch=given.micro_batch * job.example / cluster.passes,
        task=cluster.task,
        merge=merging / vectors,
        project=merging / vectors,
        add=1.5 / cluster.copies,  # a copy reads and writes once, a sum reads twice
        share=0.0,
        network=1 / cluster.network,
        call=cluster.call,
        **asdict(coordinating),
    )
    return given, costs


def on_a_card(job: Job, cluster: Cluster) -> int:
    """Bytes that the plan of the job counts for the fullest card, without activations."""
    workers = min(cluster.cards, job.group_count())
    adapters = [int(job.vector)] * job.tasks if job.rank else []
    size = JobSize(job.layout, job.tasks, job.private, job.group_count(), adapters=adapters)
    shards = min(job.shards or workers, workers)
    return card_bytes(size, workers, shards, size.vector_bytes("f32"))
