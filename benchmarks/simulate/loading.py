"""What shards fetch from a bucket before a fit: seconds, and bytes on the wire.

Swift on loopback behind a relay that counts bytes and holds each request for as long as a bucket in
the same region would. Shards are those of a job, each a process on this machine with one cache.
"""

from __future__ import annotations

import tempfile
import time

import torch

from benchmarks.scaling import split
from benchmarks.storage import CountingRelay, environment
from tests.servers import BUCKET, swift
from tintray.checkpoints.tensors import tensors_as_bytes
from tintray.jobs.engine.plan import object_store_bytes
from tintray.jobs.engine.ray_backend import RayBackend
from tintray.jobs.engine.shards import Shard, ShardConfig, Shards
from tintray.storage.artifacts.blobs import put_blob
from tintray.storage.artifacts.store import open_store

SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL |= {"intermediate_size": 256, "image_size": 32, "patch_size": 4}
REQUEST = 0.02
"""Seconds until a bucket answers: assumed, not measured."""


def load(experts: int, shards: int) -> dict[str, float]:
    """Let shards load so many task vectors from a bucket, into a cache that is empty."""
    layout, url = split(SMALL).layout, f"s3://{BUCKET}/scale"
    random = torch.Generator().manual_seed(0)

    def vector() -> bytes:
        named = {slot.name: torch.randn(slot.shape, generator=random) for slot in layout.slots}
        return tensors_as_bytes(named)

    with swift() as server, tempfile.TemporaryDirectory() as cache:
        with environment(server.environment()):
            store = open_store(url)
            base, *refs = [put_blob(store, vector()) for _ in range(experts + 1)]
        relay = CountingRelay(server.endpoint, REQUEST)
        there = {"AWS_ENDPOINT_URL": relay.endpoint, "XDG_CACHE_HOME": cache}
        with environment(server.environment() | there):
            backend = RayBackend(None, shards, object_store_bytes(layout.numel, 1))
            try:
                members = Shards(backend, ShardConfig(url, base, layout), shards)
                backend.get([shard.call(Shard.peak_memory) for shard in members.members])
                started = time.perf_counter()
                backend.get(members.load([f"task{k}" for k in range(experts)], refs))
                seconds = time.perf_counter() - started
            finally:
                backend.close()
        relay.close()
    size = base.size + sum(ref.size for ref in refs)
    return {
        "experts": experts,
        "shards": len(members.members),
        "seconds": seconds,
        "bytes": size,
        "fetched_over_bytes": relay.count / size,
    }
