"""How a job finds its cluster: what it is told, what it is given, and whom it trusts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.tiny_zoo import TinyZoo
from tintray.errors import CancelledError, SpecError
from tintray.jobs.config.settings import is_own_cluster
from tintray.jobs.engine.backend import open_backend
from tintray.jobs.runs.stopping import Stopper


@pytest.fixture(autouse=True)
def without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray turns tokens on for the whole process as soon as it finds one on the machine."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


def test_a_cluster_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are those of Ray's own check, which a process meets when it connects."""
    import ray
    from ray._private.utils import check_version_info

    def init(**_: object) -> None:
        found = {"ray_version": "1.13.0", "python_version": "3.7.1"}
        check_version_info(found, "node 10.0.0.2")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        SpecError, match=r"cluster\.address: expected .*Ray: 1\.13\.0.*same on both"
    ):
        open_backend(address="10.0.0.1:6379", workers=1, threads=1, plan=2**27)


@pytest.mark.parametrize("stopped", [False, True])
def test_ray_leaves_sigterm_to_the_job(monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    """Ray takes SIGTERM when a process connects, and would end the process by it."""
    import ray
    from ray._private.utils import set_sigterm_handler

    undone: list[str] = []

    def init(**_: object) -> None:
        set_sigterm_handler(lambda number, _: exit(number))
        if stopped:
            signal.raise_signal(signal.SIGTERM)
        raise ConnectionError("no cluster")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: undone.append("shut down"))
    with Stopper() as stopper:
        listening = signal.getsignal(signal.SIGTERM)
        with pytest.raises(CancelledError if stopped else SpecError):
            open_backend(address="10.0.0.1:6379", workers=1, threads=1, plan=2**27)
        assert signal.getsignal(signal.SIGTERM) == listening
        assert stopper.asked == stopped
    assert bool(undone) == stopped


@pytest.mark.parametrize(
    ("address", "chosen", "own"),
    [
        *((None, "", True), ("auto", "", True), ("local", "", True)),
        *(("ray://head:10001", "", False), ("head:6379", "", False), ("10.0.0.5:6379", "", False)),
        *(("head:6379", "http://head:8265", True), ("ray://head:10001", "head", True)),
        *(("evil:6379", "http://head:8265", False), ("head.evil:6379", "http://head:8265", False)),
        *(("[::1", "http://[::1", False), ("", "http://head:8265", False)),
    ],
)
@pytest.mark.parametrize("variable", ["TINTRAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_a_cluster_is_ones_own_if_one_has_chosen_its_host(
    monkeypatch: pytest.MonkeyPatch, variable: str, address: str | None, chosen: str, own: bool
) -> None:
    for name in ("TINTRAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, chosen)
    assert is_own_cluster(address) is own


def test_no_token_goes_to_a_cluster_that_only_a_job_file_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "let-me-in")
    monkeypatch.setenv("TINTRAY_ADDRESS", "http://head:8265")
    with pytest.raises(SpecError, match="goes only to a cluster that you chose"):
        open_backend(address="ray://evil:10001", workers=2, threads=1, plan=0)


def test_a_merge_of_somebody_else_takes_nobody_to_its_cluster(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINTRAY_ADDRESS", "http://head:8265")
    away = tiny.spec(tmp_path, cluster={"address": "ray://evil:10001", "workers": 2})
    assert away.on_own_cluster().cluster.address is None
    assert away.on_own_cluster().cluster.workers == 2
    own = tiny.spec(tmp_path, cluster={"address": "ray://head:10001", "workers": 2})
    assert own.on_own_cluster() is own
