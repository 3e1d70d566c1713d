"""The job file: what it accepts, what it resolves, and the sentence for each thing it refuses."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tintray.errors import SpecError
from tintray.jobs.config.job_file import JobSpec, load_spec, parse_spec
from tintray.jobs.config.renamed import RENAMED, upgraded_path
from tintray.jobs.config.section import Section
from tintray.jobs.queue.differences import changed_fields

JOB = """\
name: ten-scripts
base: zoo/base
tasks:
  - name: mnist
    kind: classification
    expert: zoo/mnist
    pool: {path: data/mnist.npz, split: train}
    test:  {path: data/mnist.npz, split: test}
  - name: svhn.v2
    expert: zoo/svhn
    pool: {path: data/svhn.npz}
"""

Load = Callable[..., JobSpec]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, two experts and their data; the current folder is another one."""
    for name in ("jobs/zoo/base", "jobs/zoo/mnist", "jobs/zoo/svhn", "jobs/data", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("mnist", "svhn"):
        (tmp_path / "jobs" / "data" / f"{name}.npz").write_bytes(b"npz")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("TINTRAY_STORE", raising=False)
    monkeypatch.delenv("TINTRAY_CATALOG", raising=False)
    return tmp_path / "jobs"


@pytest.fixture
def load(folder: Path) -> Load:
    """Write a text as job.yaml and load it, with overrides."""

    def write_and_load(text: str = JOB, *overrides: str) -> JobSpec:
        (folder / "job.yaml").write_text(text)
        return load_spec(folder / "job.yaml", overrides)

    return write_and_load


def refusal(load: Load, text: str, *overrides: str, words: Sequence[str] = ()) -> str:
    """The sentence with which a job is refused; all the words are in it."""
    with pytest.raises(SpecError) as caught:
        load(text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    return message


# What it accepts


def test_relative_paths_start_from_the_job_file_and_defaults_from_the_current_folder(
    load: Load, folder: Path
) -> None:
    spec = load(JOB + "store: ./data/store\n")
    assert spec.base.path == folder / "zoo" / "base"
    assert spec.base.written == "zoo/base"
    assert spec.tasks[0].pool.path.path == folder / "data" / "mnist.npz"
    assert spec.store.path == folder / "data" / "store"
    assert spec.catalog == f"sqlite:///{folder}/data/store/catalog.db"
    assert load(JOB + "catalog: sqlite:///a/b.db\n").catalog == f"sqlite:///{folder}/a/b.db"
    assert load(JOB + "catalog: sqlite:////a/b.db\n").catalog == "sqlite:////a/b.db"
    assert load().store.path == Path.cwd() / "tintray-data"
    assert load().catalog == f"sqlite:///{Path.cwd()}/tintray-data/catalog.db"


def test_environment_replaces_defaults_only(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINTRAY_STORE", "s3://bucket/prefix")
    monkeypatch.setenv("TINTRAY_CATALOG", "postgresql+psycopg://host/name")
    assert (load().store, load().catalog) == (
        "s3://bucket/prefix",
        "postgresql+psycopg://host/name",
    )
    written = load(JOB + "store: here\ncatalog: sqlite:///here.db\n")
    assert written.store.endswith("/jobs/here")
    assert written.catalog.endswith("/jobs/here.db")
    monkeypatch.setenv("TINTRAY_CATALOG", "catalog.db")
    assert refusal(load, JOB).startswith("TINTRAY_CATALOG: expected a database URL")


def test_what_a_model_may_be_called(load: Load, folder: Path) -> None:
    for written, resolved in {
        "google/vit-base": "google/vit-base",
        "hf://zoo/other": "zoo/other",
        "s3://bucket/models/base": "s3://bucket/models/base",
    }.items():
        base = load(JOB, f"base={written}").base
        assert (base, base.written, base.path) == (resolved, written, None)
    assert load(JOB, "base=zoo/mnist").base == str(folder / "zoo" / "mnist")  # no hub id: it exists
    (folder / "a b").mkdir()
    url = (folder / "a b").as_uri()
    assert "%20" in url
    assert load(JOB, f"base={url}").base.path == folder / "a b"


def test_empty_sections_mean_their_defaults_and_exponents_numbers(load: Load) -> None:
    assert load(JOB + "fit:\n#  rounds: 3\nstore:\n") == load()
    assert load(JOB + "fit: {coefficient_lr: 1e-2, tint_lr: 3E-4}\n").fit.tint_lr == 3e-4


def test_coefficients_of_many_tasks_move_in_smaller_steps(load: Load) -> None:
    spec = load(JOB)
    assert [spec.coefficient_lr(tasks) for tasks in (1, 10, 200)] == [0.02, 0.02, 0.001]
    assert load(JOB, "fit.coefficient_lr=0.5").coefficient_lr(200) == 0.5


def test_yaml_anchors_and_merge_keys(load: Load) -> None:
    text = """\
name: x
base: zoo/base
tasks:
  - &first
    name: a
    expert: zoo/mnist
    pool: &pool {path: data/mnist.npz}
    test: {<<: *pool, split: test}
  - {<<: *first, name: b}
"""
    spec = load(text, "tasks.a.pool.split=other")
    assert [task.name for task in spec.tasks] == ["a", "b"]
    assert [task.pool.split for task in spec.tasks] == ["other", "train"]


def test_locations_survive_pickling_and_the_catalog(load: Load) -> None:
    spec = load()
    copy = pickle.loads(pickle.dumps(spec))
    assert (copy, copy.base.written) == (spec, "zoo/base")
    assert JobSpec.from_record(spec.record()) == spec
    assert yaml.safe_load(yaml.safe_dump(spec.record())) == spec.record()


def test_neither_a_record_nor_a_refusal_holds_a_password(load: Load) -> None:
    url = "postgresql+psycopg://ada:secret@host:5432/name"
    spec = load(JOB, f"catalog={url}")
    assert spec.catalog == url
    assert "secret" not in repr(spec.record()) + spec.catalog.written
    assert "secret" not in refusal(load, JOB, "catalog=mysql://ada:secret@host/name")


def test_every_field_is_documented() -> None:
    sections: list[type[Section]] = Section.__subclasses__()
    undocumented = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not (field.description or "").endswith(".")
    ]
    assert JobSpec in sections
    assert undocumented == []


# Overrides


def test_overrides_by_name_index_and_dotted_name(load: Load) -> None:
    by_name = ("tasks.mnist.expert=zoo/svhn", "tasks.mnist.test=null", "fit.rounds=7")
    spec = load(JOB, *by_name, "tasks.1.pool.split=a", "tasks.svhn.v2.pool.split=b")
    assert spec.tasks[0].expert.endswith("/zoo/svhn")
    assert (spec.tasks[0].test, spec.tasks[1].pool.split, spec.fit.rounds) == (None, "b", 7)
    assert load(JOB + "fit: {rounds: many}\n", "fit.rounds=3").fit.rounds == 3  # mends the file


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("fit.rounds", ["expected key.path=value", "found 'fit.rounds'"]),
        ("=3", ["expected key.path=value"]),
        ("fit..rounds=3", ["expected key.path=value"]),
        ("fit.rouns=3", ["--set fit.rouns=3:", "'fit.rouns' is not a field of fit", "'rounds'"]),
        ("fit.rounds=[1", ["expected a YAML value", "'[1'"]),
        ("fit.rounds=many", ["--set fit.rounds=many:", "a whole number", "found 'many'"]),
        ("base.x=3", ["expected a section before '.x'", "'zoo/base'"]),
        ("tasks.mnits.expert=zoo/svhn", ["the name of a task", "did you mean 'mnist'?"]),
        ("tasks.2.expert=zoo/svhn", ["an index below 2", "found '2'"]),
        ("fit.groups=3", ["--set fit.groups=3:", "at most the 2 tasks", "found 3"]),
    ],
)
def test_bad_overrides(load: Load, override: str, words: list[str]) -> None:
    refusal(load, JOB, override, words=words)


# What it refuses


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("split: train}", "splt: train}"), ["line 7", "'tasks.mnist.pool.splt' is", "'split'?"]),
        (
            ("expert: zoo/mnist", "experts: zoo/mnist"),
            ["line 6", "field of tasks.mnist", "'expert'?"],
        ),
        (("zoo/mnist", "zoo/mnits"), ["line 6", "tasks.mnist.expert", "'zoo/mnits'", "'mnist'?"]),
        (("zoo/base", "zo/base"), ["line 2", "base", "'zo/base'", "did you mean 'zoo'?"]),
        (("zoo/base", "bert"), ["a hub id (org/name)", "found 'bert', which does not exist"]),
        (("zoo/base", "''"), ["base", "found an empty text"]),
        (("zoo/base", "http://h/x"), ["base", "s3:// URL", "'http://h/x'"]),
        (("zoo/base", "s3:///x"), ["base", "the bucket name ''"]),
        (("zoo/base", "s3://key:secret@b/x"), ["AWS_SECRET_ACCESS_KEY", "'s3://key:***@b/x'"]),
        (("zoo/base", "file://host/x"), ["base", "file:///path", "the host 'host'"]),
        (("data/svhn.npz", "dta/svhn.npz"), ["dta is missing", "did you mean 'data'?"]),
        (("svhn.v2", "MNIST"), ["tasks", "a different name", "'mnist', 'MNIST'"]),
        (("svhn.v2", "a/b"), ["tasks.1.name", "becomes a file name", "found 'a/b'"]),
        (("svhn.v2", ".."), ["tasks.1.name", "found '..'"]),
        (("svhn.v2", "7"), ["tasks.1.name", "expected text", "found 7; put it in quotes"]),
        (("svhn.v2", "no"), ["tasks.1.name", "found false; put it in quotes"]),
        (("ten-scripts", "latest"), ["name", "the newest merge"]),
        (("classification", "clasification"), ["tasks.mnist.kind", "expected 'classification'"]),
        (("split: test", "split: train"), ["tasks.mnist.test", "does not see", "'pool'"]),
        (("name: ten-scripts\n", ""), ["name is missing: expected the merge's name"]),
        (("    expert: zoo/svhn\n", ""), ["line 9", "tasks.svhn.v2.expert is missing"]),
    ],
)
def test_bad_fields(load: Load, change: tuple[str, str], words: list[str]) -> None:
    text = JOB.replace(*change)
    assert text != JOB
    assert "secret" not in refusal(load, text, words=words)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("fit: {rounds: 0}", ["fit.rounds", "expected 1 or more", "found 0"]),
        ("fit: {rounds: 3.5}", ["fit.rounds", "a whole number", "found 3.5"]),
        ("fit: {rounds: yes}", ["fit.rounds", "a whole number", "found true"]),
        ("fit: {rounds: '3'}", ["fit.rounds", "a whole number", "found '3'"]),
        ("fit: {rounds:}", ["fit.rounds", "found nothing"]),
        ("fit: {coefficient_lr: .nan}", ["fit.coefficient_lr", "a finite number"]),
        ("fit: {tint_lr: 0}", ["fit.tint_lr", "a number above 0", "found 0"]),
        ("fit: {rounds: 5, warmup: 5}", ["fit.warmup", "fewer than the 5 rounds", "found 5"]),
        ("fit: [1]", ["fit", "a section", "found a list"]),
        ("merge: {granularity: tensors}", ["merge.granularity", "did you mean 'tensor'?"]),
        ("merge: {bounds: [1]}", ["merge.bounds", "two numbers [low, high]", "[1]"]),
        ("merge: {bounds: [1, 0]}", ["merge.bounds", "low below high", "[1, 0]"]),
        ("merge: {scale: 0.3, bounds: [0.5, 1]}", ["merge.bounds", "(0.3)", "[0.5, 1]"]),
        ("tint: {sites: ''}", ["tint.sites", "text that is not empty"]),
        ("tint: {sites: []}", ["tint.sites", "at least one entry"]),
        ("tint: {sites: [head, head]}", ["tint.sites", "a different place", "'head' twice"]),
        ("tint: {sites: [auto, head]}", ["tint.sites", "'auto' alone"]),
        ("tint: {sites: {site: auto, rank: 2}}", ["tint.sites", "'auto' alone"]),
        ("tint: {sites: [{site: head, lr: 0}]}", ["tint.sites", "lr", "above 0", "found 0"]),
        ("tint: {rank: 2}", ["'tint.rank' is not a field of tint"]),
        (
            "objective: {labels: sof}",
            ["objective.labels", "'soft', 'hard' or 'entropy'", "'soft'?"],
        ),
        ("cluster: {workers: -1}", ["cluster.workers", "0 or more, or 'auto'", "found -1"]),
        ("cluster: {address: 'h:1', workers: 0}", ["cluster.workers", "an address", "found 0"]),
        ("tracking: mlfow", ["tracking.tracker: expected 'mlflow'", "did you mean 'mlflow'?"]),
        ("tracking: 3", ["tracking: expected a section", "found 3"]),
        ("tracking: {tracker: mlflow, to: runs}", ["tracking.to", "a URL such as", "found 'runs'"]),
        ("tracking: {tracker: wandb, to: s3://b}", ["tracking.to", "a server", "found 's3://b'"]),
        ("tracking: {tracker: tensorboard, to: http://h}", ["tracking.to", "a folder, found"]),
        ("tracking: {tracker: wandb, to: https://me:pw@h}", ["https://me:***@h", "of its own"]),
        ("tracking: {tracker: mlflow, alias: latest}", ["tracking.alias", "found 'latest'"]),
        ("store: s3://bucket\ntracking: tensorboard", ["tracking: expected 'to'", "s3://bucket"]),
        ("catalog: mysql://h/x", ["catalog", "sqlite:///catalog.db", "'mysql://h/x'"]),
        ("catalog: 'sqlite://'", ["catalog", "with three slashes"]),
        ("catalog: sqlite:///data", ["catalog", "which is a folder"]),
        ("store: data/mnist.npz", ["store", "which is a file"]),
        ("store: gs://b/x", ["store", "s3:// URL", "'gs://b/x'"]),
        ("taks: []", ["line 12", "'taks' is not a field of the job file", "'tasks'?"]),
        ("zebra: 1", ["'zebra' is not a field", "its fields are name, base, tasks"]),
        ("3: 1", ["'3' is not a field of the job file"]),
        ("name: again", ["line 12, column 1", "the key 'name' is already on line 1"]),
    ],
)
def test_bad_sections(load: Load, section: str, words: list[str]) -> None:
    refusal(load, f"{JOB}{section}\n", words=words)


def test_the_first_problem_is_told_and_the_others_named(load: Load) -> None:
    text = JOB + "fit: {rounds: 0, batch_size: 0, sed: 1}\nmerge: {scale: -1}\n"
    message = refusal(load, text)
    assert "line 12: 'fit.sed' is not a field of fit (did you mean 'seed'?" in message
    assert message.endswith("(and 3 more: merge.scale, fit.rounds, fit.batch_size)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["found an empty file"]),
        ("# nothing\n", ["found an empty file"]),
        ("- a\n", ["'key: value' lines, found a list"]),
        ("words\n", ["'key: value' lines, found 'words'"]),
        ("name: a: b\n", ["line 1, column 8: not valid YAML"]),
        ("a: [1, 2\nb: 3", ["line 2, column 2: not valid YAML"]),
        ("a: 1\n---\nb: 2\n", ["line 2, column 1", "a single document"]),
        ("a: \x01\n", ["not valid YAML", "#x0001"]),
        ("[" * 5000, ["nested too deeply"]),
        ("name: x\nbase: zoo/base\ntasks: []\n", ["line 3", "tasks", "at least one"]),
        ("name: x\nbase: zoo/base\ntasks:\n", ["tasks is missing"]),
        ("name: x\nbase: zoo/base\ntasks: {a: 1}\n", ["tasks: expected a list", "a section"]),
        ("name: x\nbase: zoo/base\ntasks: [a]\n", ["tasks.0: expected a section", "'a'"]),
    ],
)
def test_bad_documents(load: Load, text: str, words: list[str]) -> None:
    refusal(load, text, words=words)


def test_files_that_cannot_be_read(folder: Path) -> None:
    (folder / "job.yaml").write_bytes(b"name: \xff\n")
    sentences = {
        "job.yaml": "expected text in UTF-8, found byte 0xff at position 6",
        "jb.yaml": "expected a job file, found none (did you mean 'job.yaml'?)",
        "zoo": "expected a job file, found a folder",
        "nowhere/job.yaml": "expected a job file, found none",
    }
    for name, sentence in sentences.items():
        with pytest.raises(SpecError) as caught:
            load_spec(folder / name)
        assert str(caught.value) == f"{folder / name}: {sentence}"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
    field=st.sampled_from(
        ["name", "base", "tasks", "merge", "fit", "store", "catalog", "cluster", "other"]
    ),
)
def test_any_value_is_accepted_or_refused_in_one_sentence(
    load: Load, folder: Path, value: object, field: str
) -> None:
    job = {**yaml.safe_load(JOB), field: value}
    try:
        parse_spec(job, folder=folder)
    except SpecError as error:
        assert "\n" not in str(error)


# The digest


def test_digest_knows_what_changes_the_result(load: Load, folder: Path) -> None:
    same = ["name=other", "store=elsewhere", "catalog=sqlite:///x.db", "cluster.workers=3",
            "fit.rounds=300", f"base={folder}/zoo/base"]  # fmt: skip
    different = ["fit.seed=1", "fit.groups=2", "merge.scale=0.4", "tasks.mnist.expert=zoo/svhn",
                 "tasks.mnist.pool.split=other", "tint.sites=vit.layers.5",
                 "cluster.threads_per_worker=2"]  # fmt: skip
    digest = load().digest()
    assert {load(JOB, override).digest() for override in same} == {digest}
    others = {load(JOB, override).digest() for override in different}
    assert len(others - {digest}) == len(different)


def test_a_job_changes_only_into_a_valid_one(load: Load) -> None:
    spec = load(JOB, "fit.groups=1", "fit.rounds=9")
    changed = spec.changed(fit={"rounds": 5}, tint={"learned": False})
    assert (changed.fit.rounds, changed.fit.groups, changed.tint.learned) == (5, 1, False)
    assert changed.changed(fit={"rounds": 9}).fit == spec.fit
    with pytest.raises(SpecError, match=r"the job: fit.rounds: expected 1 or more, found 0"):
        spec.changed(fit={"rounds": 0})
    with pytest.raises(SpecError, match=r"'fit.round' is not a field of fit \(did you mean"):
        spec.changed(fit={"round": 4})
    with pytest.raises(SpecError, match="at least one entry"):
        spec.without([task.name for task in spec.tasks])


def test_a_job_of_fewer_tasks_has_fewer_groups(load: Load) -> None:
    spec = load(JOB, "fit.groups=1")
    spec = spec.without(["svhn.v2"])
    more = spec.changed(tasks=[*spec.tasks, spec.tasks[0].changed(name="b")], fit={"groups": 2})
    assert more.without(["b"]) == spec


def test_a_job_recorded_by_0_1_0_is_read_and_hashed_as_it_was() -> None:
    known = json.loads((Path(__file__).parent / "job_0_1_0.json").read_text())
    spec = JobSpec.from_record(known["record"])
    assert (spec.objective.top_p, spec.objective.target_precision) == (0.7, 0.6)
    assert (spec.objective.feature_weight, spec.fit.min_delta) == (0.5, 0.01)
    assert (spec.tint.budget, spec.tasks[0].pool.ignore) == ("5000 numbers", 255)
    assert spec.digest() == known["digest"]
    assert spec.submission_hash() == known["submission_hash"]
    assert JobSpec.from_record(spec.record()) == spec
    assert changed_fields(known["record"], spec.record()) == []
    tracked = spec.changed(tracking={"tracker": "mlflow"})
    assert [tracked.digest(), tracked.submission_hash()] == [spec.digest(), spec.submission_hash()]
    assert upgraded_path("tasks.mnist.adapt") == "tasks.mnist.pool"  # in a checkpoint's basis
    assert upgraded_path("tasks.keep.expert") == "tasks.keep.expert"


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_is_refused_with_the_new_one(load: Load, old: str) -> None:
    sections = {
        "adapt": "tasks.mnist",
        "least_gain": "fit",
        "max_parameters": "tint",
        "site": "tint",
    }
    path = f"{sections.get(old, 'objective')}.{old}"
    assert refusal(load, JOB, f"{path}=1").endswith(f"{path}: renamed, write `{RENAMED[old]}`")
    written = refusal(load, JOB.replace("pool: {path: data/mnist", "adapt: {path: data/mnist"))
    assert written.endswith("line 7: tasks.mnist.adapt: renamed, write `pool`")
