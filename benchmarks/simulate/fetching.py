"""What shards do before a fit: fetch every task vector from a bucket, and hash it."""

from __future__ import annotations

from benchmarks.simulate.clusters import Cluster, Job
from benchmarks.simulate.events import Simulation, Timeline

AT_ONCE = 8
"""Blobs that a shard fetches and hashes at once (``tintray/jobs/engine/shards.py``)."""
OPENING = 0.075
"""Seconds in which a process opens a client of a bucket, measured on one core."""
_PARTS = 100


def fetch(job: Job, cluster: Cluster, *, together: bool) -> tuple[Timeline, float]:
    """Time, and bytes that leave the bucket, with a shard on every card and a cache on every node.

    ``together`` is as it is now: a shard fetches several at a time through one client, and starts
    at another blob than its neighbours, so that each is fetched once for a node. Before, each
    opened a client for every blob, and fetched all of them one by one. Nodes do alike; one is
    simulated.
    """
    blobs, shards = job.tasks / _PARTS, range(cluster.on_a_node)
    threads = AT_ONCE if together else 1
    opening = 0.0 if together else OPENING
    time = Simulation()
    fetched = [0] * _PARTS  # the operation after which a part is in the node's cache

    def take(shard: int, part: int, own: bool) -> None:
        place = f"thread {part % threads} of shard {shard}"
        if own:
            asked = time.add("requests", place, (cluster.request + opening) * blobs)
            seconds = job.vector * blobs / cluster.bucket
            fetched[part] = time.add("fetch", "network", seconds, [asked])
        time.add("hash", place, job.vector * blobs / cluster.hashing, [fetched[part]])

    for own in (True, False):
        for shard in shards:
            for part in range(_PARTS):
                if own == (not together or part % len(shards) == shard):
                    take(shard, part, own)
    fetches = 1 if together else len(shards)
    return time.run(), cluster.nodes * fetches * job.tasks * job.vector
