"""One version of a merge in one process, warm before it is asked anything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tintray.errors import TintrayError
from tintray.jobs.config.settings import limits
from tintray.jobs.engine.finding import reopen_merge
from tintray.jobs.serving.options import ServeOptions
from tintray.serving.answers import Answer
from tintray.serving.engine import Engine

Example = tuple[str, Any]
"""A task and an input."""


@dataclass(frozen=True)
class ReplicaConfig:
    """What every replica of a version is made from."""

    url: str
    manifest: str  # the ``digest`` of the version that was opened there
    factory: str | None
    options: ServeOptions


class Replica:
    """Answers mixed batches; one batch is prepared while others are computed."""

    def __init__(self, config: ReplicaConfig) -> None:
        options = config.options
        torch.set_num_threads(options.threads)
        self._engine = Engine(
            reopen_merge(config.url, config.manifest, config.factory),
            tint_memory=options.tint_memory,
            batch_size=options.max_batch_size,
            limits=replace(limits(), max_image_pixels=options.max_pixels),
            max_characters=options.max_characters,
            passes=options.passes_at_once,
        )
        self._engine.warm()

    async def predict(self, examples: Sequence[Example]) -> list[Answer | TintrayError]:
        """See ``Engine.answer``."""
        return await asyncio.to_thread(self._engine.answer, examples)

    async def stats(self) -> dict[str, int]:
        """See ``Engine.tints``."""
        return self._engine.tints
