"""SECURITY.md and docs/reliability.md name tests that there are; no document opens a cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tintray.limits import Limits

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/*.md", "examples/**/*", ".ci/*")
    for path in ROOT.glob(pattern)
    if path.is_file()
]


PROMISES = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/.]+(?:::\w+)?)`", TEXT + PROMISES)


@pytest.mark.parametrize("named", sorted(set(NAMED)))
def test_every_test_that_it_names_is_there(named: str) -> None:
    file, _, name = named.partition("::")
    assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8")


def test_every_budget_is_told() -> None:
    for name in Limits.__dataclass_fields__:
        assert f"`{name}`" in TEXT


def test_no_document_starts_a_cluster_without_tokens() -> None:
    starts = 0
    for path in DOCUMENTS:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines):
            if "ray start --head -" in line:
                starts += 1
                before = "\n".join(lines[max(0, number - 10) : number + 1])
                assert "RAY_AUTH_MODE=token" in before, f"{path}:{number + 1}"
                assert "0.0.0.0" not in line
    assert starts >= 2


def test_documents_lead_to_it() -> None:
    for name in ("README.md", "docs/storage.md", "docs/cluster.md"):
        assert "SECURITY.md" in (ROOT / name).read_text(encoding="utf-8")
