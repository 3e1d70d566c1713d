"""Corrupted examples: how much, always alike, and what cannot be corrupted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tintray.data.corruptions import CORRUPTIONS, TYPOS, Corruption
from tintray.data.reading import Examples
from tintray.errors import DataError, InputError

OF_IMAGES = [name for name in CORRUPTIONS if name != TYPOS]


def images(*shape: int) -> Examples:
    count, height, width = shape[:3]
    down, across = np.mgrid[:height, :width]
    waves = np.sin(down / 3.1) + np.sin(across / 2.3) + np.sin((down + across) / 4.7)
    grain = np.random.default_rng(0).normal(0, 0.1, (count, height, width))
    smooth = 110 + 30 * (waves + grain)
    whole = smooth[..., None].repeat(3, -1) if len(shape) == 4 else smooth
    return Examples({"image": whole.clip(0, 255).astype(np.uint8)}, np.arange(shape[0]))


def moved(before: Examples, after: Examples) -> float:
    """How far corrupted images are from what they were."""
    one, two = (np.asarray(of.columns["image"], np.float64) for of in (before, after))
    return float(np.abs(one - two).mean())


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("shape", [(4, 16, 20), (2, 80, 90, 3)])
def test_images_are_corrupted_the_more_the_severer(name: str, shape: tuple[int, ...]) -> None:
    given = images(*shape)
    made = [Corruption(name, severity)(given, "role") for severity in range(1, 6)]
    distances = [moved(given, one) for one in made]
    assert 0 < distances[0] < distances[2] < distances[4]
    for one in made:
        found = one.columns["image"]
        assert found.dtype == np.uint8 and found.shape == shape
    again = Corruption(name, 3)(given, "role")
    assert np.array_equal(again.columns["image"], made[2].columns["image"])


def test_each_image_is_corrupted_by_itself() -> None:
    """Images of several sizes, and of an example what it would be in any other set."""
    sizes = [images(1, 16, 20).columns["image"][0], images(1, 90, 80).columns["image"][0]]
    both = Corruption("gaussian_noise", 2)(Examples({"image": sizes}), "role").columns["image"]
    one = Corruption("gaussian_noise", 2)(Examples({"image": sizes[:1]}), "role").columns["image"]
    assert [found.shape for found in both] == [(16, 20), (90, 80)]
    assert np.array_equal(both[0], one[0])


def test_contrast_and_blur_are_what_their_authors_say() -> None:
    gray = np.full((1, 70, 70), 100, np.uint8)
    gray[0, :, 35:] = 200
    low = Corruption("contrast", 1)(Examples({"image": gray}), "role").columns["image"]
    assert sorted(np.unique(low)) == [130, 170]  # 0.4 of the way from the mean
    bright = Corruption("brightness", 1)(Examples({"image": gray}), "role").columns["image"]
    assert int(bright.min()) == round(100 + 25.5)
    soft = Corruption("blur", 1)(Examples({"image": gray}), "role").columns["image"][0]
    row = soft[35].astype(int)
    assert row[:30].tolist() == [100] * 30 and row[40:].tolist() == [200] * 30
    assert row[34] == 200 - row[35] + 100 and 100 < row[34] < 150 < row[35] < 200


TEXTS: dict[str, Any] = {
    "text": ["the quick brown fox jumps over the lazy dog"] * 40,
    "tokens": [["Angela", "Merkel", "visited", "Paris", "in", "spring"]] * 40,
    "messages": [[{"role": "user", "content": "please summarise these notes"}]] * 40,
}


@pytest.mark.parametrize("column", TEXTS)
def test_texts_get_typos_in_a_share_of_their_words(column: str) -> None:
    def words(value: Any) -> list[str]:
        if isinstance(value, list):
            return [word for part in value for word in words(part)]
        text: str = value["content"] if isinstance(value, dict) else value
        return text.split(" ")

    given = Examples({column: TEXTS[column]}, np.arange(40))
    before, shares = words(TEXTS[column]), []
    for severity in range(1, 6):
        after = words(Corruption(TYPOS, severity)(given, "role").columns[column])
        assert len(after) == len(before) and all(after)
        long = [pair for pair in zip(before, after, strict=True) if len(pair[0]) > 2]
        assert all(one == two for one, two in zip(before, after, strict=True) if len(one) < 3)
        shares.append(sum(one != two for one, two in long) / len(long))
    assert 0 < shares[0] < shares[2] < shares[4] <= 0.6


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("gausian_noise:3", "did you mean 'gaussian_noise'"),
        ("blur:6", r"severity from 1 to 5 as in blur:3, found '6'"),
        ("blur:3,", "found ''"),
    ],
)
def test_what_is_no_corruption_is_said(asked: str, said: str) -> None:
    with pytest.raises(InputError, match=f"--corrupt: .*{said}"):
        Corruption.parse(asked)


def test_severities_are_all_where_none_is_named() -> None:
    assert [str(of) for of in Corruption.parse("blur:2, contrast")] == [
        "blur:2", *(f"contrast:{n}" for n in range(1, 6)),
    ]  # fmt: skip
    with pytest.raises(DataError, match="typos corrupts no images; expected gaussian_noise"):
        Corruption(TYPOS, 1)(images(1, 8, 8), "role")
    with pytest.raises(DataError, match="blur corrupts no texts; expected typos"):
        Corruption("blur", 1)(Examples({"text": ["a"]}), "role")
