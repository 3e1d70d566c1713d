"""A task that cannot be used fails its job, or is left out and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tintray
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.errors import CheckpointError, DataError, InputError
from tintray.jobs.events import Notice


@pytest.fixture(scope="module")
def damaged(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> TinyZoo:
    """The first task's expert and the last one's pool cannot be used."""
    zoo = tiny.copy(tmp_path_factory.mktemp("damaged") / "zoo")
    (zoo.folder / "two" / "model.safetensors").write_bytes(b"not a model")
    zoo.replace_arrays("four", x_train=None)
    return zoo


def test_tasks_that_fail_are_left_out_and_named(
    tiny: TinyZoo, damaged: TinyZoo, tmp_path: Path
) -> None:
    """And the merge is, to the last bit, the one of the other tasks alone."""
    told: list[Any] = []
    merge = tintray.run(damaged.spec(tmp_path / "a", on_task_error="skip"), on_event=told.append)
    assert merge.tasks == ("three", "five")
    assert set(merge.manifest.skipped) == {"two", "four"}
    assert "tasks.four.pool" in merge.manifest.skipped["four"]
    texts = [event.text for event in told if isinstance(event, Notice)]
    assert sum("is left out" in text for text in texts) == 2
    alone = tintray.run(tiny.spec(tmp_path / "b", tasks=("three", "five")))
    assert merge.manifest.files == alone.manifest.files


@pytest.mark.parametrize(
    ("tasks", "on_task_error", "error", "said"),
    [
        (TASKS, "fail", CheckpointError, r"tasks\.two\.expert"),  # the first in the job's order
        (("three", "four"), "fail", DataError, r"tasks\.four\.pool"),
        (("four",), "skip", InputError, r"tasks\.four\.pool"),  # none is left
    ],
)
def test_a_task_fails_its_job(
    damaged: TinyZoo, tmp_path: Path, tasks: Any, on_task_error: Any, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        tintray.run(damaged.spec(tmp_path, tasks=tasks, on_task_error=on_task_error))
