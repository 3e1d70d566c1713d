"""Self-labels: an expert's outputs over a pool, computed once; afterwards no expert is needed."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from tintray.errors import CheckpointError
from tintray.models import head_modules, skeleton
from tintray.pools import Pool
from tintray.tint import listen

BATCH = 32  # examples per forward pass: small enough to stay in a core's cache, measured


@torch.inference_mode()
def predict(module: nn.Module, pool: Pool) -> Tensor:
    """Logits [N, C] in float32 of a module over a whole pool."""
    outputs = [
        module(**pool.batch(slice(start, start + BATCH))).logits.float()
        for start in range(0, len(pool), BATCH)
    ]
    return torch.cat(outputs)


@torch.inference_mode()
def predict_features(module: nn.Module, pool: Pool, path: str) -> Tensor:
    """Features [N, d] of a module over a whole pool, at ``path``; see ``tint.listen``."""
    heard: list[Tensor] = []
    listening = skeleton(module)
    listen(listening, path, head_modules(module)[0], heard)
    for start in range(0, len(pool), BATCH):
        listening(**pool.batch(slice(start, start + BATCH)))
    return torch.cat(heard)


def self_labels(expert: nn.Module, pool: Pool, role: str) -> Tensor:
    """The expert's logits [N, C] over its adaptation pool.

    Raises
    ------
    CheckpointError
        If the expert answers with a value that is not finite.
    """
    logits = predict(expert, pool)
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits).all(-1)).sum())
        raise CheckpointError(
            f"{role} gives NaN or infinite outputs on {bad:,} of {len(pool):,} pool examples; "
            "expected finite logits, check the expert and its preprocessing"
        )
    return logits


def features_key(expert_digest: str, pool_digest: str, path: str) -> str:
    """The content hash under which an expert's features at a depth are cached."""
    text = f"self-features 1 {path} {expert_digest} {pool_digest}"
    return hashlib.sha256(text.encode()).hexdigest()


def labels_key(expert_digest: str, pool_digest: str) -> str:
    """The content hash under which self-labels are cached: of expert, pool and preprocessing."""
    return hashlib.sha256(f"self-labels 1 {expert_digest} {pool_digest}".encode()).hexdigest()
