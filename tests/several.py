"""A cluster in this process: several members, CPUs that are counted, copies of all that is sent.

What a job computes must not depend on who hosts what. That is tried here over many layouts, without
the seconds that each of Ray's processes takes to start; tests/e2e compare one of them with Ray's.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from tintray.jobs.engine.backend import InlineFleet, Member, Ref
from tintray.jobs.engine.sizes import ClusterSize


def sent(value: Any) -> Any:
    """What arrives in another process: a copy, whose arrays nobody may write to."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])


class _Sent:
    """A member that is handed copies and answers with copies."""

    def __init__(self, member: Member, threads: float) -> None:
        self.member, self.threads = member, threads

    def call(self, method: str, *args: Any, returns: int = 1, direct: bool = False) -> Ref:
        return sent(self.member.call(method, *sent(args), returns=returns, direct=direct))


class SeveralFleet(InlineFleet):
    """As many members at once as there are CPUs; one more would wait for ever on a cluster."""

    def __init__(self, cpus: int) -> None:
        super().__init__(1)
        self.cpus = cpus
        self.members: list[_Sent] = []

    def size(self) -> int:
        return self.cpus

    def capacity(self) -> ClusterSize:
        return ClusterSize(cpus=self.cpus, memory=8 * 2**30, object_store=None)

    def spawn(
        self,
        cls: type,
        *args: Any,
        threads: float,
        name: str,
        gpus: int = 0,
        beside: Member | None = None,
        here: bool = False,
    ) -> Member:
        options: dict[str, Any] = {"threads": threads, "name": name, "gpus": gpus, "here": here}
        member = _Sent(super().spawn(cls, *sent(args), **options), 0 if beside or here else threads)
        self.members.append(member)
        taken = sum(found.threads for found in self.members)
        assert taken <= self.cpus, f"{name} would wait for a CPU for ever"
        return member

    def dismiss(self, members: Sequence[Member]) -> None:
        self.members = [found for found in self.members if found not in members]
