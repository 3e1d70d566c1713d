"""Submitting, stopping and resuming without a cluster: what is refused, and with which words."""

from __future__ import annotations

import io
import json
import re
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tintray
from tests.answers import call
from tests.fake_head import fake_head, redirecting
from tests.ray_head import free_ports
from tests.tiny_zoo import TinyZoo
from tintray.errors import ClusterError, InputError, SpecError, TintrayError
from tintray.jobs.config.settings import config_file, lease_seconds, setting
from tintray.jobs.queue.handover import dispatch
from tintray.jobs.queue.ray_jobs import RayJobs, jobs_address
from tintray.jobs.upkeep import doctor
from tintray.storage.catalog.catalog import Catalog
from tintray.storage.catalog.states import JobState


@pytest.fixture
def zoo(tiny: TinyZoo, tmp_path: Path) -> TinyZoo:
    return tiny.copy(tmp_path / "zoo")


@pytest.fixture(autouse=True)
def _place(zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are called where there is a job file."""
    zoo.job_file(tmp_path / "store")
    monkeypatch.chdir(zoo.folder)
    monkeypatch.setenv("TINTRAY_STORE", str(tmp_path / "store"))


@pytest.mark.parametrize("how", ["option", "configured"])
@pytest.mark.parametrize(
    ("head", "code", "said"),
    [
        ({}, 0, "runs the code of whoever reaches it"),
        ({"token": "secret-one"}, 0, "wants a token"),
        ({"token": "another"}, 1, "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH"),
        ({"rayVersion": "2.9.0"}, 1, "runs Ray 2.9.0"),
        (None, 1, "no Ray cluster answers"),
    ],
    ids=["open", "token", "another token", "another version", "nobody"],
)
def test_the_doctor_looks_at_the_cluster_that_jobs_go_to(
    monkeypatch: pytest.MonkeyPatch,
    head: dict[str, str] | None,
    code: int,
    said: str,
    how: str,
) -> None:
    """By its Jobs API, as a submission does; no Ray is started here, so that no node can look."""
    monkeypatch.setattr(doctor, "reached", lambda *_: [])
    monkeypatch.setattr(doctor, "_ray", lambda: pytest.fail("another cluster was looked at"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-one")
    with fake_head(**(head or {})) as (address, _):
        where = f"http://127.0.0.1:{free_ports(1)[0]}" if head is None else address
        if how == "configured":
            monkeypatch.setenv("TINTRAY_ADDRESS", where)
        options = ["--address", where] if how == "option" else []
        found, out, _ = astuple(call("doctor", "--json", *options))
    check = json.loads(out)["checks"][-1]
    assert (found, check["ok"]) == (code, code == 0)
    assert said in f"{check['found']}; {check['fix']}"
    assert "secret-one" not in out


def test_addresses_are_those_of_dashboards() -> None:
    for written, address in {
        "auto": "http://127.0.0.1:8265",
        "head": "http://head:8265",
        "head:9000": "http://head:9000",
        "http://head:9000/ray/": "http://head:9000/ray",
        "https://head": "https://head:443",
        "[::1]:9000": "http://[::1]:9000",
    }.items():
        assert jobs_address(written) == address
    for written in ("ray://head:10001", "", "head:x", "http://me:hunter2@head"):
        with pytest.raises(SpecError, match="address: expected") as raised:
            jobs_address(written)
        assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"rayVersion": "2.9.0"}, r"runs Ray 2\.9\.0, and this is Ray .* install the same"),
        ({"pythonVersion": "3.9.1"}, r"runs Python 3\.9\.1, and this is Python"),
        (
            None,
            r"error: no Ray cluster answers at http://[0-9.:]* \(Connection refused\); check the "
            r"address, and that `ray start --head` runs there with its dashboard\n$",
        ),
    ],
)
def test_a_cluster_of_another_version_or_none_is_refused_and_nothing_is_entered(
    tmp_path: Path, metadata: dict[str, str] | None, said: str
) -> None:
    with fake_head(**(metadata or {})) as (address, submitted):
        where = address if metadata else f"http://127.0.0.1:{free_ports(1)[0]}"
        code, out, err = astuple(call("submit", "job.yaml", "--address", where))
    assert (code, out, submitted) == (2, "", []), err
    assert re.search(said, err)
    with Catalog.open(f"sqlite:///{tmp_path}/store/catalog.db") as catalog:
        assert catalog.jobs.all() == []
    assert "--address, TINTRAY_ADDRESS or `tintray init`" in call("submit", "job.yaml").sentence


def test_what_is_handed_over_names_the_job(zoo: TinyZoo, tmp_path: Path) -> None:
    spec = zoo.spec(tmp_path / "store")
    with fake_head() as (address, submitted):
        job = tintray.submit(spec, address=address, priority=3, key="a")
        waiting = tintray.submit(spec, address=address)
        assert tintray.submit(spec, address=address, priority=3, key="a").id == job.id
    (request,) = submitted
    assert request["submission_id"] == f"{job.id}-1"
    assert request["entrypoint"].endswith(f"-m tintray.jobs.queue.entry {job.id} 1")
    assert request["runtime_env"]["env_vars"]["TINTRAY_CATALOG"] == str(spec.catalog)
    waits = job.status().waits
    assert waits is not None and "its driver is starting" in waits
    assert waiting.status().waits == f"{address} runs 1 of 1 jobs at once; it goes next"


@pytest.fixture
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "let-me-in")


@pytest.mark.usefixtures("_token")
@pytest.mark.parametrize("way", ["option", "variable", "Ray's variable", "job file", "catalog"])
def test_the_token_goes_to_no_address_but_the_one_that_the_user_chose(
    zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    spec = zoo.spec(tmp_path / "store")
    with fake_head() as (address, submitted):
        names = {"variable": "TINTRAY_ADDRESS", "Ray's variable": "RAY_API_SERVER_ADDRESS"}
        monkeypatch.setenv(names.get(way, "TINTRAY_ADDRESS"), "http://elsewhere:1")
        if way in names:
            monkeypatch.setenv(names[way], f"{address}/")
        if way == "job file":
            tintray.submit(spec.changed(cluster={"address": address, "workers": "auto"}))
        elif way == "catalog":
            with Catalog.open(spec.catalog) as catalog:
                catalog.jobs.create("x", spec.record(), str(spec.store), cluster=address)
                catalog.queue.set_limit(address, None)
                dispatch(catalog, spec.catalog, address)
        else:
            tintray.submit(spec, address=address if way == "option" else None)
    (request,) = submitted
    given = way in ("option", *names)
    assert (request["authorization"] == "Bearer let-me-in") is given
    assert request["runtime_env"]["env_vars"].get("TINTRAY_ADDRESS") == (address if given else None)
    assert "let-me-in" not in json.dumps(request | {"authorization": ""})


@pytest.mark.usefixtures("_token")
def test_no_redirect_is_followed() -> None:
    with fake_head() as (there, submitted), redirecting(there) as (address, seen):
        jobs = RayJobs(address, confirmed=True)
        with pytest.raises(InputError, match="redirects elsewhere, which is not followed"):
            jobs.check_versions()
        for ask in (lambda: jobs.submit("true", "a", {}), lambda: jobs.logs("a")):
            with pytest.raises(ClusterError, match="redirects elsewhere"):
                ask()
    assert seen == ["Bearer let-me-in"] * 3
    assert submitted == []


@pytest.mark.parametrize("token", ["two words", "a\nb", "a\r\nHost: x", "ü", "\x1b[2J"])
def test_a_token_that_is_none_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with pytest.raises(SpecError, match="expected a token") as raised:
        RayJobs("http://127.0.0.1:9", confirmed=True).check_versions()
    assert token not in str(raised.value)


@pytest.mark.parametrize(
    "answer",
    [b"[]", b"3", b"null", b"[" * 100_000, b"{", b'{"data": 3}', b"\xff", b'{"status": []}'],
)
def test_whatever_a_cluster_answers_ends_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    jobs = RayJobs("http://127.0.0.1:9")
    monkeypatch.setattr(jobs, "_opener", SimpleNamespace(open=lambda *_, **__: io.BytesIO(answer)))
    for ask in (jobs.check_versions, lambda: jobs.find("a"), lambda: jobs.logs("a")):
        with suppress(TintrayError):
            ask()


def test_a_job_file_that_was_changed_needs_another_key() -> None:
    with fake_head() as (address, _):
        submit = ("submit", "job.yaml", "--address", address, "--key", "nightly")
        first = call(*submit, "--json").document
        said = call(*submit, "--set", "fit.rounds=7", "--set", "fit.seed=1").sentence
    assert f"the key 'nightly' is that of job {first['id']}" in said
    assert "(fit.rounds: 4 then, 7 now and 1 more); submit it with another key" in said
    assert call("diff", first["id"], "job.yaml", "--json").document["fields"] == []


def test_jobs_are_found_by_what_people_type() -> None:
    with fake_head() as (address, _):
        submit = ("submit", "job.yaml", "--address", address, "--json")
        first, second = [call(*submit).document["id"] for _ in range(2)]
    for text, found in ((first, first), (first[:-2], first), ("latest", second)):
        assert call("status", text, "--json").document["id"] == found
    assert "may be any of 2 jobs" in call("status", "tiny").sentence
    wrong = first[:-1] + "x"
    for command in ("status", "watch", "wait", "cancel", "resume", "retry", "logs"):
        said = call(command, wrong).sentence
        assert f"there is no job {wrong}" in said and f"did you mean '{first}'?" in said


def test_a_job_that_waits_is_cancelled_at_once_and_resumed() -> None:
    with fake_head() as (address, submitted):
        job = call("submit", "job.yaml", "--address", address, "--json").document["id"]
        assert "(queued) would be stopped; nothing was" in call("cancel", job, "--dry-run").out
        known = call("status", job, "--json").document
        assert "handed over at" in known["waits"]
        assert known["waits"] == call("ps", "--json").document[0]["waits"]
        assert call("cancel", job, "--json").document["state"] == "cancelled"
        said = f"job {job} is cancelled (cancelled on request): there is nothing to cancel"
        assert said in call("cancel", job).sentence
        assert call("wait", job).code == 3
        assert f"round, when it is next at {address}" in call("resume", job, "--dry-run").out
        assert call("resume", job).code == 0
        assert f"job {job} is queued (resumed)" in call("resume", job).sentence
    assert [request["submission_id"] for request in submitted] == [f"{job}-1", f"{job}-3"]
    late = call("wait", job, "--timeout", "0.1")
    assert late.code == 5 and f"`tintray watch {job}`" in late.err


class Death(BaseException):
    """What no driver lives to tell of."""


def run_until_round_3(tiny: TinyZoo, store: Path, error: BaseException) -> str:
    """Run a job with checkpoints until it ends early; its id."""

    def stop(event: object) -> None:
        if getattr(event, "round", None) == 3:
            raise error

    with pytest.raises(type(error)):
        tintray.run(tiny.spec(store, fit={"checkpoint_every": 1}), on_event=stop)
    (line,) = tintray.list_jobs()
    return line.id


def test_a_job_that_was_run_here_is_resumed_here(tiny: TinyZoo, tmp_path: Path) -> None:
    job = run_until_round_3(tiny, tmp_path / "store", KeyboardInterrupt())
    (line,) = tintray.list_jobs()
    assert (line.state, line.round, line.rounds) == ("cancelled", 2, 4)
    resumed = call("resume", job, "--json")
    found = resumed.document
    assert (found["state"], found["merge"], found["checkpoint"]) == ("succeeded", "tiny/v1", None)
    assert "goes on after round 2 of 4" in resumed.err
    assert found["events"][-1]["reason"] == "published as tiny/v1"
    said = call("logs", job).out
    assert "cancelled: interrupted" in said
    assert json.loads(call("logs", job, "--json").out.splitlines()[0])["text"] in said


def test_retry_starts_over(tiny: TinyZoo, tmp_path: Path) -> None:
    run_until_round_3(tiny, tmp_path / "store", InputError("enough"))
    events: list[Any] = []
    job = tintray.job()
    assert job.retry(on_event=events.append).state == "succeeded"
    assert [e.round for e in events if type(e).__name__ == "RoundDone"] == [1, 2, 3, 4]
    different = job.diff(job)
    assert (different.fields, different.results) == ([], [])


def test_a_lost_job_is_cancelled_with_its_checkpoints(tiny: TinyZoo, tmp_path: Path) -> None:
    job = run_until_round_3(tiny, tmp_path / "store", Death())
    catalog = f"sqlite:///{tmp_path}/store/catalog.db"
    with Catalog.open(catalog) as opened:  # as if nobody had lived to say that it failed
        opened.jobs.transition(job, JobState.FAILED, JobState.FITTING, "lost")
    lost = tintray.job(job, catalog=catalog)
    found = lost.status()
    assert (found.state, found.checkpoint) == ("lost", 2)
    said = f"nobody works on it; it was fitting: `tintray resume {job}` goes on"
    assert found.reason == said
    assert [line.id for line in tintray.list_jobs(catalog=catalog, states=["lost"])] == [job]
    assert lost.wait().state == "lost"
    for words, said in {
        "cancel --discard": f"{job} (lost) would be stopped and have its checkpoint after round 2 "
        "deleted; nothing was",
        "resume": f"{job} would go on after round 2, here",
        "retry": f"{job} would go on from its first round, without its checkpoints, here",
    }.items():
        assert said in call(*words.split(), job, "--dry-run").out
    assert lost.status() == found
    cancelled = lost.cancel(discard=True)
    assert (cancelled.state, cancelled.checkpoint) == ("cancelled", None)
    assert list((tmp_path / "store").glob("merges/*")) == []


def test_the_configuration_file_is_asked_where_nothing_else_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config" / "tintray" / "config.toml"
    for name in ("TINTRAY_CONFIG", "TINTRAY_STORE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert config_file() == path
    secret = "postgresql+psycopg://me:hunter2@db/tintray"
    made = call("init", "--store", "mine", "--address", "head", "--catalog", secret)
    assert made.code == 0 and str(path) in made.out, made.err
    assert "hunter2" not in made.out + made.err
    assert path.stat().st_mode & 0o777 == 0o600
    for name, value in (("store", str(Path.cwd() / "mine")), ("address", "http://head:8265")):
        assert (found := setting(name)) is not None and found.value == value
    monkeypatch.setenv("TINTRAY_ADDRESS", "other")
    assert (found := setting("address")) is not None and found.value == "other"
    assert "--force" in call("init", "--store", "again").sentence
    assert call("init", "--store", "again", "--force").code == 0
    path.write_text("stoer = 'x'")
    assert "found 'stoer' (did you mean 'store'?" in call("ps").sentence


def test_a_lease_must_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINTRAY_LEASE_SECONDS", "soon")
    with pytest.raises(SpecError, match="TINTRAY_LEASE_SECONDS: expected a number of seconds"):
        lease_seconds()


def test_shells_can_complete() -> None:
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = astuple(call("completion", shell))
        assert code == 0
        assert "_TINTRAY_COMPLETE" in out
