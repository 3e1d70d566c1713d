"""Jobs on a real Ray cluster by the real command line, with S3 and PostgreSQL behind them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import tintray
from tests.ray_head import RayHead, ray_head
from tests.servers import BUCKET, PostgresServer, S3Server
from tests.tiny_zoo import TinyZoo
from tintray.jobs import api
from tintray.jobs.queue.submission import set_limit
from tintray.storage.artifacts.publish import MergeRef, parse_merge_url, read_manifest
from tintray.storage.artifacts.store import open_store
from tintray.storage.catalog.catalog import Catalog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_MAIN = "from tintray.jobs.cli import main; raise SystemExit(main())"
STORE = f"s3://{BUCKET}/queue/team"
LEASE_SECONDS = "15"  # whoever looks starts a job again whose driver is silent for longer
FIT = {"rounds": 240, "groups": 2, "checkpoint_every": 30}


@dataclass
class Team:
    """People who share a store, a catalog and a cluster, and type commands."""

    zoo: TinyZoo
    catalog: str
    environment: dict[str, str]
    said: list[str] = field(default_factory=list)

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _MAIN, *args],
            cwd=self.zoo.folder,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, command: subprocess.Popen[str], expected: int, seconds: float = 180) -> str:
        """The standard output of a command that must end with this exit code."""
        out, err = command.communicate(timeout=seconds)
        self.said += [out, err]
        assert command.returncode == expected, (command.args, out, err)
        assert "Traceback" not in err
        return out

    def type(self, *args: str, expected: int = 0) -> str:
        return self.end(self.start(*args), expected)

    def ask(self, *args: str, expected: int = 0) -> Any:
        return json.loads(self.type(*args, "--json", expected=expected))


@pytest.fixture(scope="module")
def team(
    tiny: TinyZoo,
    s3_server: S3Server,
    postgres_server: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    zoo = tiny.copy(folder / "zoo")
    job = zoo.job_file(folder / "unused", fit=FIT, cluster={"workers": "auto"})
    job.write_text("".join(line for line in job.open() if not line.startswith("store:")))
    with postgres_server.database() as catalog:
        environment = s3_server.environment() | {
            "TINTRAY_STORE": STORE,
            "TINTRAY_CATALOG": catalog,
            "TINTRAY_LEASE_SECONDS": LEASE_SECONDS,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        yield Team(zoo, catalog, environment)


@pytest.fixture(scope="module")
def head(team: Team) -> Iterator[RayHead]:
    """The cluster on which a job is resumed, and on which others run after it."""
    with ray_head(cpus=2, **team.environment) as started:
        yield started


def until(what: Callable[[], Any], seconds: float = 300) -> Any:
    give_up = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < give_up
        time.sleep(0.3)
    return found


def test_a_job_survives_its_cluster(
    team: Team, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submit, watch, kill the head, see it lost, resume on another cluster: the same merge."""
    undisturbed = api.run(team.zoo.spec(tmp_path / "alone", fit=FIT))
    with ray_head(cpus=1, **team.environment) as killed:
        team.environment["TINTRAY_ADDRESS"] = killed.address
        submitted = team.ask("submit", "job.yaml", "--key", "nightly")
        again = team.ask("submit", "job.yaml", "--key", "nightly")
        assert (submitted["state"], again["id"]) == ("queued", submitted["id"])
        changed = team.start("submit", "job.yaml", "--key", "nightly", "--set", "fit.seed=9")
        team.end(changed, 2)
        assert "(fit.seed: 0 then, 9 now)" in team.said[-1]
        job_id = submitted["id"]
        watching = team.start("watch", job_id)
        with Catalog.open(team.catalog) as catalog:

            def has_checkpoint() -> bool:
                if catalog.jobs.get(job_id).state.terminal:
                    pytest.fail(team.type("status", job_id) + team.type("logs", job_id))
                return bool(catalog.checkpoints.of(job_id))

            until(has_checkpoint)
        assert team.ask("status", job_id)["state"] == "fitting"
        assert "already" not in team.type("logs", job_id)
        killed.kill()
        team.end(watching, 4)
    lost = team.ask("status", job_id)
    assert lost["state"] == "lost"
    assert lost["checkpoint"] in range(30, 240, 30)
    assert f"tintray resume {job_id}" in lost["next"]
    assert [line["state"] for line in team.ask("ps")] == ["lost"]
    team.type("resume", job_id, expected=2)  # its cluster is gone
    assert "no Ray cluster answers" in team.said[-1]
    head: RayHead = request.getfixturevalue("head")
    team.environment["TINTRAY_ADDRESS"] = head.address
    resuming = [team.start("resume", job_id, "--address", head.address) for _ in range(2)]
    said = [command.communicate(timeout=120) for command in resuming]
    codes = sorted(command.returncode for command in resuming)
    assert codes == [0, 2], said  # one of two who try at once
    team.type("wait", job_id, "--timeout", "150")
    assert "goes on after round" in team.type("logs", job_id)
    team.type("cancel", job_id, expected=2)
    assert "is succeeded" in team.said[-1]
    for name, text in team.environment.items():
        monkeypatch.setenv(name, text)
    found = read_manifest(open_store(STORE), MergeRef("tiny", 1))
    expected = read_manifest(*parse_merge_url(undisturbed.url))
    assert found["files"] == expected["files"]
    assert [task["kept"] for task in found["tasks"]] == [t["kept"] for t in expected["tasks"]]
    assert found["metrics"] == expected["metrics"]


def test_jobs_go_by_priority_two_at_a_time(
    team: Team, head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one that runs; tests/jobs/test_queue_order.py has twenty, and drivers of its own."""
    catalog = f"sqlite:///{tmp_path}/catalog.db"
    fit = {"rounds": 1, "batch_size": 2, "precision": "float32"}
    spec = team.zoo.spec(tmp_path / "store", ("two",), fit=fit, catalog=catalog)
    monkeypatch.setenv("TINTRAY_CATALOG", catalog)
    monkeypatch.setenv("TINTRAY_LEASE_SECONDS", "60")
    first = tintray.submit(spec, address=head.address, priority=1000)
    jobs = [tintray.submit(spec, address=head.address, priority=n) for n in (0, 3, 1, 2)]
    set_limit(2, address=head.address)
    ends = [job.wait(400) for job in (first, *jobs)]
    assert [job.state for job in ends] == ["succeeded"] * 5
    assert sorted(job.merge for job in ends) == sorted(f"tiny/v{n}" for n in range(1, 6))
    with Catalog.open(catalog) as known:
        assert [known.leases.current(job.id).token for job in ends] == [1] * 5  # begun once each
        claimed = {job.id: known.jobs.get(job.id).handed_at for job in ends}
    priority = {job.id: job.priority for job in ends}
    order = [priority[job] for job in sorted(claimed, key=lambda job: claimed[job])]
    assert order == sorted(order, reverse=True)


def test_the_doctor_lets_the_cluster_look_too(team: Team, head: RayHead, tmp_path: Path) -> None:
    asked = ("doctor", "--address", head.address)

    def looked(*more: object, code: int) -> dict[str, Any]:
        checks = team.ask(*asked, *map(str, more), expected=code)["checks"]
        return {check["name"]: check for check in checks if check["name"].endswith("there")}

    well = looked(code=0)
    assert [check["ok"] for check in well.values()] == [True] * 3
    assert STORE in well["store there"]["found"]
    ill = looked("--store", tmp_path / "new", "--catalog", f"sqlite:///{tmp_path}/x.db", code=1)
    assert "no folder" in ill["store there"]["found"] and "mount" in ill["store there"]["fix"]
    assert "there is no catalog" in ill["catalog there"]["found"]
    team.environment["TINTRAY_PYTHON"] = "/nowhere/python"
    try:
        checks = team.ask(*asked, expected=1)["checks"]
    finally:
        del team.environment["TINTRAY_PYTHON"]
    assert checks[-1]["name"] == "driver" and "TINTRAY_PYTHON" in checks[-1]["fix"]
