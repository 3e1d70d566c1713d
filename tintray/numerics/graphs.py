"""Record what a GPU is asked to do, once, and let it be done again without asking kernel by kernel.

A small model keeps a GPU waiting: starting a kernel takes longer than running it. A recorded CUDA
graph starts all of its kernels at once. On a CPU nothing is recorded; functions run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

MOST = 24
"""Recordings that are kept of one kind; what comes after runs as it is."""


class Recordings:
    """Functions of fixed tensors, each recorded the second time that it runs.

    What a function reads and writes must lie in the same tensors whenever it runs, and must not
    depend on numbers that Python holds. The first run loads what kernels need. A function that
    cannot be recorded, because it waits for the GPU's answer, goes on as it is.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._records = torch.device(device).type == "cuda"
        self._found: dict[Hashable, Any] = {}  # None: ran once, False: cannot be recorded
        self._pool: Any = None  # memory that all recordings share: one runs at a time
        self._stream: Any = None

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Run ``function``, or what was recorded of it under ``key``."""
        if not self._records:
            function()
            return
        graph = self._found.get(key, False if len(self._found) >= MOST else None)
        if graph:
            graph.replay()
        elif key in self._found and graph is None:
            self._found[key] = graph = self._record(function)
            if graph:
                graph.replay()
            else:
                function()
        else:
            self._aside(function)
            self._found.setdefault(key, graph)

    def _aside(self, function: Callable[[], None]) -> None:
        """Run on the stream that recordings are made on, so that they find what it left there."""
        current = torch.cuda.current_stream()
        self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)

    def _record(self, function: Callable[[], None]) -> Any:
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                function()
        except RuntimeError:
            torch.cuda.synchronize()
            return False
        return graph
