"""Any sequence of changes leaves a consistent lineage, whole merges, and nothing of what is gone.

Fifteen random sequences, each in a copy of one store; each step is checked as it is made.
"""

from __future__ import annotations

import uuid

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import tintray
from tests.growing import GrowingStore
from tests.tiny_zoo import TASKS, TinyZoo
from tintray.jobs.results import MergeSummary
from tintray.jobs.runs.history import history
from tintray.published.manifest import Manifest

ROUNDS = ("growth.rounds=2", "growth.coefficient_rounds=1", "growth.refit_rounds=1")
QUICK = (*ROUNDS, "growth.tolerance=100")
OPERATIONS, MODES = ("add", "remove", "refresh"), ("tint", "tint", "coefficients", "joint")
changes = st.tuples(*map(st.sampled_from, (OPERATIONS, TASKS, MODES)))


def of_tasks(manifest: Manifest) -> set[str | None]:
    """What a merge needs of each of its tasks, now and to grow: hashes."""
    tints = (file.sha256 for name, file in manifest.files.items() if name.startswith("tints/"))
    needed: set[str | None] = set(tints)
    for task in manifest.tasks:
        needed |= {task.task_vector, task.pool.labels, *([task.test.outputs] if task.test else [])}
    return needed


@pytest.fixture(scope="module")
def beginning(tiny: TinyZoo, tmp_path_factory: pytest.TempPathFactory) -> GrowingStore:
    """One merge for all sequences: making it costs more than most of them."""
    store = GrowingStore(tiny, tmp_path_factory.mktemp("sequences") / "begun", QUICK)
    store.run("two", "three", fit={"rounds": 1})
    return store


@settings(
    max_examples=15,
    database=None,
    derandomize=True,
    phases=[Phase.generate],  # a shorter sequence is soon found by hand
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(changes, min_size=1, max_size=3))
def test_every_sequence_is_sound(
    beginning: GrowingStore, steps: list[tuple[str, str, str]]
) -> None:
    line = beginning.copy(beginning.store.with_name(uuid.uuid4().hex))
    made: list[MergeSummary] = []
    tasks = {"two", "three"}
    for operation, task, mode in steps:
        if (operation == "add") == (task in tasks) or (operation == "remove" and len(tasks) == 1):
            continue
        options = {} if operation == "remove" else {"mode": mode}
        made.append(getattr(line, operation)(task, **options))  # of the newest version
        tasks = tasks ^ {task} if operation != "refresh" else tasks
        merge = tintray.load(made[-1].url)
        assert set(merge.tasks) == tasks and len(merge.coefficients) == len(tasks)
        for name in merge.manifest.files:
            merge.file(name)  # verifies its hash
        merge.for_task(task if task in tasks else merge.tasks[0])
    refs = ["tiny/v1", *(f"tiny/{summary.version}" for summary in made)]
    assert [summary.parent for summary in made] == refs[:-1]
    told = {found.ref: found.parent for found in history("tiny", catalog=line.place["catalog"])}
    assert {ref: told[ref] for ref in refs} == dict(zip(refs, [None, *refs[:-1]], strict=True))
    manifests = line.manifests()
    last = manifests[refs[-1]]
    line.collect(*refs[:-1])
    everything = set().union(*(of_tasks(manifest) for manifest in manifests.values()))
    blobs = line.blobs()
    assert of_tasks(last) <= blobs  # what it needs to grow on
    assert not (everything - of_tasks(last)) & blobs  # nothing of tasks and tints that are gone
    line.collect(refs[-1])
    assert not line.blobs()
