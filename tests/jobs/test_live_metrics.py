"""A job's figures reach Ray's Prometheus endpoint, and the dashboard asks for what is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ray_head import ray_head
from tests.test_imports import ROOT
from tests.tiny_zoo import TinyZoo
from tintray.jobs.events import JobChecked, PhaseStarted, RoundDone
from tintray.jobs.serving.metrics import Metrics
from tintray.jobs.tracking.live import JOB_TAGS, METRICS, MOST_TASKS, LiveMetrics

GRAFANA = ROOT / "deploy/grafana/tintray.json"
_RUN = """
import sys, time, urllib.request
from pathlib import Path
from tintray.jobs import api
from tintray.jobs.config.job_file import load_spec
from tintray.jobs.events import PhaseStarted

def scrape(event):
    give_up = time.monotonic() + 60
    while event == PhaseStarted("publishing", getattr(event, "detail", "")):
        text = urllib.request.urlopen(sys.argv[2]).read().decode()
        if 'task_agreement{' in text or time.monotonic() > give_up:
            sys.stdout.write(text)
            return
        time.sleep(0.2)

api.run(load_spec(Path(sys.argv[1])), on_event=scrape)
"""
"""A driver that looks at the metrics of its node before it publishes."""


def told(live: Any, *events: Any) -> dict[tuple[str, str], float]:
    """The last value of each metric, by its name and the tag that only it has."""
    found: dict[tuple[str, str], float] = {}

    def keep(name: str, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == {*JOB_TAGS, *METRICS[name][1]}
        own = [value for tag, value in tags.items() if tag not in JOB_TAGS]
        found[name.removeprefix("tintray_job_"), "".join(own)] = value

    live.set = keep
    for event in events:
        live.take(event)
    live.push()
    live.end()
    return found


def round_(number: int, seconds: float, tasks: int = 2, **more: Any) -> RoundDone:
    shares = {f"t{n}": n / tasks for n in range(tasks)}
    return RoundDone(number, 9, 3.0, shares, dict.fromkeys(shares, 0.5), seconds, **more)


def test_figures_of_a_job_that_went_on_once() -> None:
    clock = iter(range(0, 1000, 10))
    begin = (PhaseStarted("planning"), JobChecked({}, {}, 3), PhaseStarted("fitting"))
    live = LiveMetrics("job-1", "job", clock=lambda: float(next(clock)))
    found = told(live, *begin, round_(1, 4.0), *begin, round_(2, 8.0), round_(3, 8.5))
    assert found["round", ""] == 3 and found["rounds", ""] == 9 and found["loss", ""] == 3.0
    assert found["agreement", ""] == 0.25 and found["selected_fraction", ""] == 0.5
    assert found["task_agreement", "t1"] == 0.5
    assert found["passes_per_second", ""] == 4.0  # two tasks in half a second
    assert found["workers", ""] == 3 and found["restarts", ""] == 1 and found["running", ""] == 1
    # The clock moves by 10 with each look: at each phase and each round.
    assert found["phase_seconds", "planning"] == 20 and found["phase_seconds", "fitting"] == 40


def test_of_many_tasks_none_has_a_metric_of_its_own() -> None:
    names = {name for name, _ in told(LiveMetrics("j", "j"), round_(1, 1.0, MOST_TASKS + 1))}
    assert "agreement" in names and "task_agreement" not in names


@pytest.mark.slow
def test_ray_exports_the_figures_of_a_job(tiny: TinyZoo, tmp_path: Path) -> None:
    with ray_head(2) as head:
        job = tiny.job_file(
            tmp_path / "store",
            cluster={"address": head.cluster, "workers": 1},
            fit={"held_back": 8},
        )
        command = [sys.executable, "-c", _RUN, str(job), head.metrics]
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}  # other tests may have set it
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    samples = re.findall(r"^ray_(tintray_job_\w+)\{(.*)\} (\S+)$", done.stdout, re.MULTILINE)
    assert {name for name, _, _ in samples} == METRICS.keys()
    values = {name: float(value) for name, tags, value in samples if 'name="tiny"' in tags}
    assert values["tintray_job_round"] == values["tintray_job_rounds"] == 4
    assert values["tintray_job_workers"] == 1 and values["tintray_job_running"] == 1
    assert values["tintray_job_passes_per_second"] > 0 and values["tintray_job_loss"] > 0


def exported() -> set[str]:
    """Names that Prometheus finds at Ray's endpoint and at that of a server."""
    live = {"version": "v", "queued": 0, "batches": 0, "examples": 0, "tints": {}}
    metrics = Metrics()
    metrics.request(200, 0.1)
    metrics.answered("two", "v")
    served = metrics.text({"stable": live, "candidate": None}).decode()
    names = re.findall(r"^(tintray_\w+?)(?:\{.*\})? \S+$", served, re.MULTILINE)
    return {f"ray_{name}" for name in METRICS} | set(names)


def test_the_dashboard_asks_for_what_is_exported() -> None:
    dashboard = json.loads(GRAFANA.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for text in expressions for name in re.findall(r"\b(?:ray_)?tintray_\w+", text)}
    assert asked <= exported()
    assert {name for name in asked if name.startswith("ray_")} == {f"ray_{n}" for n in METRICS}
    for text in expressions:  # labels in braces and after `by` are those that the code sets
        named = re.findall(r"\{(\w+)=|by \(([\w, ]+)\)|, (\w+)=", text)
        labels = {one.strip() for of in named for part in of for one in part.split(",") if one}
        assert labels <= {*JOB_TAGS, "phase", "task", "code", "version", "le"}, text


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    dashboard = json.loads(GRAFANA.read_text())
    assert dashboard["uid"] and dashboard["title"] and dashboard["schemaVersion"] >= 39
    assert dashboard["id"] is None  # with one it would take the place of another
    variables = {of["name"]: of for of in dashboard["templating"]["list"]}
    assert variables["source"]["query"] == "prometheus"
    seen, ids = set(), set()
    for panel in dashboard["panels"]:
        ids.add(panel["id"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & seen, f"{panel['title']} lies upon another panel"
        seen |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${source}"
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables.keys() | {
                "__rate_interval"
            }
    assert len(ids) == len(dashboard["panels"])


def test_prometheus_scrapes_ray_and_servers() -> None:
    found = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    jobs = {of["job_name"]: of for of in found["scrape_configs"]}
    assert jobs.keys() == {"ray", "tintray-serve"}
    assert jobs["tintray-serve"].get("metrics_path", "/metrics") == "/metrics"
