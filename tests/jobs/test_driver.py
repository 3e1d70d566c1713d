"""Whatever ends a job early is its last event in the catalog, with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_zoo import TinyZoo
from tintray.errors import FitError, InputError, SpecError
from tintray.jobs import api
from tintray.jobs.events import RoundDone
from tintray.storage.catalog.catalog import Catalog


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (FitError("a sentence"), "failed", "a sentence"),
        (ZeroDivisionError("zero"), "failed", "internal error: ZeroDivisionError: zero"),
        (KeyboardInterrupt(), "cancelled", "interrupted from the keyboard"),
    ],
)
def test_a_job_that_ends_early_says_why(
    tiny: TinyZoo, tmp_path: Path, error: BaseException, state: str, reason: str
) -> None:
    spec = tiny.spec(tmp_path, tasks=("two", "five"))

    def stop(event: object) -> None:
        if isinstance(event, RoundDone) and event.round == 2:
            raise error

    with pytest.raises(type(error)):
        api.run(spec, on_event=stop)
    with Catalog.open(spec.catalog, create=False) as catalog:
        (job,) = catalog.jobs.all()
        assert job.state == state
        events = catalog.jobs.events(job.id)
        assert events[-1].reason == reason
        assert (events[-1].from_state, events[-1].to_state) == ("fitting", state)
        assert catalog.merges.all() == []
    assert not (tmp_path / "merges").exists()


def test_a_site_is_refused_before_there_is_a_job(tiny: TinyZoo, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"tint\.site"):
        api.run(tiny.spec(tmp_path, tint={"sites": "nowhere"}))
    assert list(tmp_path.iterdir()) == []


def test_a_catalog_that_cannot_be_is_bad_input(tiny: TinyZoo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = tiny.spec(tmp_path / "store", catalog=f"sqlite:///{tmp_path}/file/catalog.db")
    with pytest.raises(InputError, match=r"catalog\.db"):
        api.run(spec)
