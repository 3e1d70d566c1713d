"""How a model splits: the learning rate that a tint layer gets where a job names none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tiny_models import BERT, model
from tintray.numerics.schedules import BLOCK_LR, HEAD_LR
from tintray.numerics.sites import TintSite
from tintray.tinting.partition import default_tint_lr


def bert(width: int) -> Any:
    return model("BertForSequenceClassification", BERT, hidden_size=width)


@pytest.mark.parametrize(
    ("width", "site", "rank", "expected"),
    [
        (16, "bert.encoder.layer.1", None, BLOCK_LR),
        (400, "bert.encoder.layer.1", None, 0.1 / 400),
        (400, "*.attention", None, 0.1 / 400),
        (400, "bert.encoder.layer.1", 4, BLOCK_LR),
        (400, "norms", None, BLOCK_LR),
        (400, "head", None, HEAD_LR),
    ],
)
def test_wide_blocks_learn_more_slowly(
    width: int, site: str, rank: int | None, expected: float
) -> None:
    assert default_tint_lr(bert(width), TintSite(site, rank)) == pytest.approx(expected)
