"""A task that cannot be used fails its job, or is left out and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny_zoo import TinyZoo
from tintray.errors import CheckpointError, DataError, InputError
from tintray.jobs import api
from tintray.jobs.events import Notice
from tintray.storage.artifacts.publish import parse_merge_url, read_manifest


def damaged(tiny: TinyZoo, folder: Path) -> TinyZoo:
    """The first task's expert and the last one's pool cannot be used."""
    zoo = tiny.copy(folder)
    (zoo.folder / "two" / "model.safetensors").write_bytes(b"not a model")
    zoo.replace_arrays("four", x_train=None)
    return zoo


def test_tasks_that_fail_are_left_out_and_named(tiny: TinyZoo, tmp_path: Path) -> None:
    """And the merge is, to the last bit, the one of the other tasks alone."""
    zoo = damaged(tiny, tmp_path / "zoo")
    told: list[Any] = []
    summary = api.run(zoo.spec(tmp_path / "a", on_task_error="skip"), on_event=told.append)
    assert [task.name for task in summary.tasks] == ["three", "five"]
    assert set(summary.skipped) == {"two", "four"}
    assert "tasks.four.pool" in summary.skipped["four"]
    texts = [event.text for event in told if isinstance(event, Notice)]
    assert sum("is left out" in text for text in texts) == 2
    alone = api.run(tiny.spec(tmp_path / "b", tasks=("three", "five")))
    files = [read_manifest(*parse_merge_url(url))["files"] for url in (summary.url, alone.url)]
    assert {n: f["sha256"] for n, f in files[0].items()} == {
        n: f["sha256"] for n, f in files[1].items()
    }


@pytest.mark.parametrize(
    ("tasks", "on_task_error", "error", "said"),
    [
        (("two", "three", "five", "four"), "fail", CheckpointError, r"tasks\.two\.expert"),
        (("three", "four"), "fail", DataError, r"tasks\.four\.pool"),
        (("four",), "skip", InputError, r"tasks\.four\.pool"),  # none is left
    ],
)
def test_a_task_fails_its_job(
    tiny: TinyZoo,
    tmp_path: Path,
    tasks: tuple[str, ...],
    on_task_error: str,
    error: type[Exception],
    said: str,
) -> None:
    """By default the first in the job's order; and where it is the last."""
    zoo = damaged(tiny, tmp_path / "zoo")
    with pytest.raises(error, match=said):
        api.run(zoo.spec(tmp_path / "a", tasks=tasks, on_task_error=on_task_error))
