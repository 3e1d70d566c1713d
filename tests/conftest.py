"""Fixtures that every suite shares: the tiny zoo, one published merge of it, the real zoo."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.services import postgres_server, postgres_url, s3_server, s3_url
from tests.tiny_zoo import TinyZoo, make_zoo

if TYPE_CHECKING:
    from tintray.jobs.config.job_file import JobSpec
    from tintray.jobs.results import MergeSummary

settings.register_profile("tintray", deadline=None)  # a busy machine is no failure
settings.load_profile("tintray")

__all__ = ["postgres_server", "postgres_url", "s3_server", "s3_url"]  # fixtures for every suite

os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may depend on the network, nor on where the person who runs it keeps merges.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("TINTRAY_STORE", None)
os.environ.pop("TINTRAY_CATALOG", None)
os.environ.pop("TINTRAY_ADDRESS", None)
os.environ["TINTRAY_CONFIG"] = os.devnull


@dataclass(frozen=True)
class Published:
    """A job that ran, and what it told while it did."""

    spec: JobSpec
    summary: MergeSummary
    events: list[Any] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The merge's folder in its store."""
        return Path(self.summary.url.removeprefix("file://"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyZoo:
    """The tiny zoo; only to be read, ``copy`` it to change something."""
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def published(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The tiny job, run once in this process; only to be read."""
    from tintray.jobs import api

    spec = tiny.spec(tmp_path_factory.mktemp("store"))
    events: list[Any] = []
    return Published(spec, api.run(spec, on_event=events.append), events)


@pytest.fixture(scope="session")
def real_zoo() -> Path:
    """The folder with ``zoo/`` and ``data/vision/``, from ``TINTRAY_ZOO`` or beside the project."""
    named = os.environ.get("TINTRAY_ZOO")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared"
    if not (folder / "zoo" / "base" / "model.safetensors").is_file():
        pytest.skip(f"the real zoo is not in {folder}; TINTRAY_ZOO names the folder that has it")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread, as a worker does: the same sums on every machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_configure() -> None:
    """Let child processes hear Ctrl-C.

    A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
