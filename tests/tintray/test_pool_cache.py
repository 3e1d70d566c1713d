"""Images are decoded once: the same files, prepared the same way, come from the cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tintray
from tests.tiny_zoo import TinyZoo
from tintray.checkpoints.model_folder import ModelFolder, open_model_folder
from tintray.data import reading
from tintray.data.source import DataSource
from tintray.errors import DataError
from tintray.jobs import api
from tintray.pools import cache as pool_cache
from tintray.pools.pool import Pool
from tintray.pools.preparing import open_pool
from tintray.tasks.classes import CLASSIFICATION


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images; the fourth is cut short."""
    random = np.random.default_rng(0)
    below = tmp_path / "images" / "train"
    below.mkdir(parents=True)
    for number in range(6):
        pixels = random.integers(0, 256, (20, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(below / f"{number}.png")
    broken = below / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was decoded."""
    values, decode = list[Any](), reading.decode

    def counted(value: Any, source: Any) -> Any:
        values.append(value)
        return decode(value, source)

    monkeypatch.setattr(reading, "decode", counted)
    return values


@pytest.fixture
def expert(tiny: TinyZoo, tmp_path: Path) -> ModelFolder:
    return open_model_folder(tiny.copy(tmp_path / "zoo").folder / "five")


def opened(folder: Path, expert: ModelFolder, cache: Path, max_bad: int = 1) -> Pool:
    source = DataSource(str(folder), max_bad=max_bad)
    return open_pool(source, expert, CLASSIFICATION, "x", "tasks.x.pool", cache)


def test_what_was_decoded_once_is_not_again(
    folder: Path, expert: ModelFolder, decoded: list[Any], tmp_path: Path
) -> None:
    first = opened(folder, expert, tmp_path / "cache")
    assert len(decoded) == 6
    copied = folder.rename(tmp_path / "elsewhere")  # it goes by content, not by name
    again = opened(copied, expert, tmp_path / "cache")
    assert len(decoded) == 6
    assert again.digest == first.digest
    assert list(again.rows) == [0, 1, 2, 4, 5] == list(first.rows)
    assert again.inputs["pixel_values"].dtype == torch.uint8
    assert torch.equal(*(pool.batch(slice(None))["pixel_values"] for pool in (first, again)))
    with pytest.raises(DataError, match=r"1 of 6 examples .* max_bad allows 0"):
        opened(copied, expert, tmp_path / "cache", max_bad=0)


def test_other_pixels_and_other_preparation_are_decoded(
    folder: Path, expert: ModelFolder, decoded: list[Any], tmp_path: Path
) -> None:
    first = opened(folder, expert, tmp_path / "cache")
    Image.new("RGB", (20, 14)).save(folder / "train" / "0.png")
    other = opened(folder, expert, tmp_path / "cache")
    path = expert.folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))
    third = opened(folder, expert, tmp_path / "cache")
    assert len(decoded) == 18
    assert len({first.digest, other.digest, third.digest}) == 3


def test_a_damaged_entry_is_made_again_and_old_ones_are_forgotten(
    folder: Path, expert: ModelFolder, decoded: list[Any], tmp_path: Path, monkeypatch: Any
) -> None:
    cache = tmp_path / "cache"
    opened(folder, expert, cache)
    (entry,) = (cache / "pools").iterdir()
    entry.write_bytes(entry.read_bytes()[:50])
    opened(folder, expert, cache)
    assert len(decoded) == 12
    os.utime(entry, (0, 0))
    monkeypatch.setattr(pool_cache, "MOST_BYTES", int(1.5 * entry.stat().st_size))
    opened(folder, expert, cache, max_bad=2)
    assert [path == entry for path in (cache / "pools").iterdir()] == [False]
    (tmp_path / "none").write_text("a file, where the cache cannot be written")
    assert len(opened(folder, expert, tmp_path / "none")) == 5


def test_a_job_and_its_evaluation_decode_each_image_once(
    tiny: TinyZoo, decoded: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    zoo = tiny.copy(tmp_path / "zoo")
    arrays = zoo.arrays("five")
    for split in ("train", "test"):
        for number in range(30):
            below = zoo.folder / "pictures" / split / f"class {arrays[f'y_{split}'][number]}"
            below.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays[f"x_{split}"][number]).save(below / f"{number}.png")
    job = zoo.job(tmp_path / "store", tasks=("five",))
    tests = {"path": "pictures", "split": "test"}
    job["tasks"][0] |= {"pool": {"path": "pictures"}, "test": tests}
    spec = tintray.parse_spec(job, folder=zoo.folder)
    summary = api.run(spec)
    again = api.evaluate(summary.url, store=str(spec.store), catalog=str(spec.catalog))
    assert [task.merged for task in again.tasks] == [task.merged for task in summary.tasks]
    assert len(decoded) == 60
