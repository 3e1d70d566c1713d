"""Trackers of experiments hear of a job: real ones, fed with the events of a real job."""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tintray
from tests.conftest import Published
from tests.tiny_zoo import TinyZoo
from tintray.errors import CancelledError, InputError
from tintray.jobs import api
from tintray.jobs.config.job_file import JobSpec
from tintray.jobs.config.locations import Location
from tintray.jobs.events import Notice, PhaseStarted, RoundDone, TintLearned
from tintray.jobs.runs import grow
from tintray.jobs.runs.run import continue_job
from tintray.jobs.tracking import following
from tintray.jobs.tracking.following import followed
from tintray.jobs.tracking.tracker import check_tracker
from tintray.jobs.tracking.values import Curves, Value, parameters
from tintray.storage.catalog.catalog import Catalog

ROUNDS = 4


def round_(number: int, agreement: float = 0.5, **more: Any) -> RoundDone:
    shares = {"two": agreement, "five": 1.0}
    return RoundDone(number, ROUNDS, 2.0, shares, dict.fromkeys(shares, 0.25), 9.0, **more)


def steps(curves: Curves, events: Sequence[Any]) -> list[int]:
    return [v.step for event in events for v in curves.take(event) if v.name == "loss"]


def test_a_round_gives_means_and_a_figure_of_each_task() -> None:
    assert Curves().take(round_(1, held_back={"two": 0.75})) == [
        Value(1, "loss", 2.0),
        Value(1, "seconds", 9.0),
        Value(1, "selected_fraction", 0.25),
        Value(1, "agreement", 0.75),
        Value(1, "agreement/two", 0.5),
        Value(1, "agreement/five", 1.0),
        Value(1, "held_back", 0.75),
        Value(1, "held_back/two", 0.75),
    ]


def test_a_round_that_is_run_again_is_told_once() -> None:
    again = [PhaseStarted("planning"), PhaseStarted("fitting"), round_(2), round_(3)]
    assert steps(Curves(), [PhaseStarted("fitting"), round_(1), round_(2), *again]) == [1, 2, 3]


def test_the_fits_of_a_merge_that_grows_come_one_after_another() -> None:
    curves = Curves()
    assert steps(curves, [PhaseStarted("fitting"), round_(1), round_(2), round_(1)]) == [1, 2, 3]
    assert curves.take(TintLearned("six", 1, 1, 2.0, 0.9)) == [Value(3, "tint/six", 0.9)]


def test_parameters_are_the_sections_of_the_job_and_the_names_of_its_tasks(
    published: Published,
) -> None:
    found = parameters(published.spec.record())
    assert found["fit.rounds"] == "4"
    assert found["tasks"] == "4: two, three, five, four"
    assert "fit.tint_lr" not in found  # it is left out


# Each tracker, fed with the events of a job


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers write into the current folder, and no variable of this machine counts."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def tell(job: Published, tracking: Any, events: Sequence[Any], end: Any = None) -> list[str]:
    """Tell the events of a job to its tracker; what was said besides them."""
    said: list[Any] = []
    spec = job.spec.changed(tracking=tracking)
    try:
        with followed(spec, "tiny-1", 0, said.append) as on_event:
            for event in events:
                on_event(event)
            if end is not None:
                raise end
    except (CancelledError, ValueError):
        pass
    return [one.text for one in said if isinstance(one, Notice) and one not in events]


def until(job: Published, number: int) -> list[Any]:
    """The events of a job before it told of a round."""
    rounds = [n for n, e in enumerate(job.events) if isinstance(e, RoundDone)]
    return job.events[: rounds[number - 1]]


def test_mlflow_keeps_one_run_of_a_job_and_a_version_of_its_model(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    uri = f"sqlite:///{tmp_path}/ml.db"
    tracking = {"tracker": "mlflow", "to": uri, "project": "zoo", "alias": "candidate"}
    client = MlflowClient(uri)

    def run() -> Any:
        experiment = client.get_experiment_by_name("zoo").experiment_id
        (found,) = client.search_runs([experiment])
        return found

    assert tell(published, tracking, until(published, 3), CancelledError("asked")) == []
    assert run().info.status == "KILLED"
    assert tell(published, tracking, published.events) == []
    found, id_ = run(), run().info.run_id
    assert found.info.status == "FINISHED"
    assert found.data.params["fit.rounds"] == str(ROUNDS)
    assert found.data.tags["tintray.base"].startswith(str(published.spec.base))
    curve = {of.step: of.value for of in client.get_metric_history(id_, "loss")}
    assert curve == {e.round: e.loss for e in published.events if isinstance(e, RoundDone)}
    accuracy = published.summary.tasks[0].merged
    assert found.data.metrics["tasks/two/accuracy"] == pytest.approx(accuracy)
    names = {of.path for of in client.list_artifacts(id_)}
    assert names == {"lineage.json", "merge.json", "report.html"}
    report = Path(client.download_artifacts(id_, "report.html")).read_text()
    assert "<html" in report and "tiny" in report
    version = client.get_model_version_by_alias("tiny", "candidate")
    assert (version.version, version.run_id) == (1, id_)
    assert version.tags == {"tintray.merge": "tiny/v1", "tintray.url": published.summary.url}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = download_artifacts("models:/tiny@candidate")
    assert tintray.load(folder).manifest.ref == "tiny/v1"


def leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a file of W&B, which has no reader in Python: LevelDB's log, after a header.

    Each part has a checksum, its length, and its kind: whole, first, middle or last.
    """
    place, record, block = 7, b"", 1 << 15
    while place < len(data):
        if (left := block - place % block) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        place += 7 + length
        record += data[place - length : place]
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_keeps_one_run_of_a_job_and_an_artifact(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(following, "TAKE_FILES", ())  # the report is MLflow's test
    assert tell(published, "wandb", published.events) == []
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = [Record.FromString(data) for data in leveldb_log(file.read_bytes())]
    (run,) = (of.run for of in records if of.WhichOneof("record_type") == "run")
    assert (run.run_id, run.project, run.display_name) == ("tiny-1", "tiny", "tiny")
    history = [of.history for of in records if of.WhichOneof("record_type") == "history"]
    losses = [
        (of.step.num, float(item.value_json))
        for of in history
        for item in of.item
        if "loss" in (item.key, *item.nested_key)
    ]
    told = [e for e in published.events if isinstance(e, RoundDone)]
    assert losses == [(e.round, pytest.approx(e.loss)) for e in told]
    (artifact,) = (of.artifact for of in records if of.WhichOneof("record_type") == "artifact")
    assert {of.path for of in artifact.manifest.contents} == {"merge.json"}
    assert "newest" in artifact.aliases


def scalars(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_shows_one_curve_of_a_job_that_was_resumed(published: Published) -> None:
    tracking = {"tracker": "tensorboard", "to": Location(str(Path.cwd() / "runs"))}
    assert tell(published, tracking, until(published, 4), ValueError("a bug")) == []
    assert tell(published, tracking, published.events) == []
    found = scalars(Path("runs/tiny-1"))
    told = [e for e in published.events if isinstance(e, RoundDone)]
    curve = [(of.step, of.value) for of in found.Scalars("loss")]
    assert curve == [(e.round, pytest.approx(e.loss)) for e in told]
    (accuracy,) = found.Scalars("tasks/two/accuracy")
    assert accuracy.value == pytest.approx(published.summary.tasks[0].merged)
    (text,) = found.Tensors("job/text_summary")
    assert b"| fit.rounds | 4 |" in text.tensor_proto.string_val[0]


# What a tracker cannot do to a job


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_tracker_that_is_away_is_told_of_once(
    published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(following, "TAKE_FILES", ())
    tracking = {"tracker": "mlflow", "to": Location("http://127.0.0.1:9")}
    said = tell(published, tracking, published.events)
    assert len(said) == 2
    assert said[0].startswith("mlflow does not take what it is told (")
    assert said[0].endswith("the job goes on")
    assert said[1] == "mlflow did not take all that was told of it"


def test_a_tracker_that_hangs_does_not_hold_a_job_up(
    published: Published, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PATIENCE", 0.2)
    monkeypatch.setattr(following, "TAKE_FILES", ())
    began = time.monotonic()
    said = tell(published, {"tracker": "mlflow", "to": Location(silent)}, published.events)
    assert said == ["mlflow did not take all that was told of it"]
    assert time.monotonic() - began < 15  # MLflow would wait for 20 seconds, and try again


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(
    tiny: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    spec = tiny.spec(tmp_path / "store", tracking="wandb")
    with pytest.raises(InputError, match=r"^tracking: wandb needs wandb.*tintray\[wandb\]"):
        api.run(spec)
    assert not (tmp_path / "store").exists()
    check_tracker(None)


# From the job file on


def test_a_job_that_is_resumed_and_a_merge_that_grows_are_tracked(
    tiny: TinyZoo, published: Published, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    tracking = {"tracker": "tensorboard", "to": str(runs)}
    spec: JobSpec = tiny.spec(tmp_path / "store", tracking=tracking)

    def cut(event: object) -> None:
        if isinstance(event, RoundDone) and event.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.run(spec, on_event=cut)
    with Catalog.open(spec.catalog, create=False) as catalog:
        (job,) = catalog.jobs.all()
        catalog.queue.requeue(job.id, "resumed", cluster=None)
        recorded = JobSpec.from_record(catalog.jobs.get(job.id).spec)
        manifest = continue_job(job.id, catalog, recorded, [].append)
    assert [of.step for of in scalars(runs / job.id).Scalars("loss")] == [1, 2, 3, 4]
    # What it publishes is what it would have published untracked, and says nothing of it.
    assert "tracking" not in manifest.job.to_json()
    untracked = tintray.load(published.summary.url).manifest
    assert manifest.files["backbone.safetensors"] == untracked.files["backbone.safetensors"]
    grow.remove("tiny", ["five"], store=str(spec.store), catalog=str(spec.catalog))
    (grown,) = (path for path in runs.iterdir() if path.name != job.id)
    assert scalars(grown).Scalars("tasks/two/accuracy")
    (lineage,) = scalars(grown).Tensors("lineage/text_summary")
    assert b"| parent | tiny/v1 |" in lineage.tensor_proto.string_val[0]
