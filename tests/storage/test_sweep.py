"""What is garbage and what is not, decided by a pure function."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tintray.storage.artifacts.blobs import blob_key
from tintray.storage.artifacts.protocol import Entry
from tintray.storage.artifacts.sweep import Inventory, Sweep, is_ours, plan_sweep

OLD, LIMIT, NEW = 10.0, 100.0, 200.0
HASHES = [letter * 64 for letter in "0123456789abcdef"]
A, B, C = HASHES[:3]
MANIFEST = "merges/x/v1/manifest.json"


def blob(sha256: str, modified: float = OLD, size: int = 5) -> Entry:
    return Entry(blob_key(sha256), size, modified)


def blocks_of(sha256: str, modified: float = OLD) -> Entry:
    """What 0.1.0 wrote beside a large blob."""
    return Entry(f"{blob_key(sha256)}.blocks", 1, modified)


def record(name: str = "k", modified: float = OLD) -> Entry:
    return Entry(f"cache/labels/{name}.json", 3, modified)


def keys(sweep: Sweep) -> list[str]:
    return [item.key for item in sweep.garbage]


def test_what_nobody_needs_goes_and_what_somebody_needs_stays() -> None:
    sweep = plan_sweep(Inventory((blob(A), blob(B, size=7)), (), {}, {}), {A}, LIMIT)
    assert keys(sweep) == [blob_key(B)]
    assert (sweep.kept, sweep.kept_bytes, sweep.young) == (1, 5, 0)
    assert sweep.garbage[0].sha256 == B
    text = f'{{"files": {{"x": {{"sha256": "{A}"}}}}, "task_vector": "{B}", damaged'
    named = Inventory((blob(A), blob(B), blob(C)), (), {MANIFEST: text}, {})
    assert keys(plan_sweep(named, set(), LIMIT)) == [blob_key(C)]


def test_what_belongs_to_a_blob_goes_before_it_and_with_it_and_is_as_young() -> None:
    for entries in ((blob(A), blocks_of(A, NEW)), (blob(A), record(modified=NEW))):
        sweep = plan_sweep(Inventory(entries, (), {}, {record().key: A}), set(), LIMIT)
        assert (keys(sweep), sweep.young, sweep.kept) == ([], 2, 2)
    found = Inventory((blocks_of(A), blob(A), record()), (), {}, {record().key: A})
    assert keys(plan_sweep(found, set(), LIMIT)) == [blocks_of(A).key, record().key, blob_key(A)]
    gone = Inventory((record(), blocks_of(B)), (), {}, {record().key: A})
    sweep = plan_sweep(gone, set(), LIMIT)
    assert keys(sweep) == [record().key, blocks_of(B).key]
    assert all("its blob is gone" in item.reason for item in sweep.garbage)


def test_what_killed_writers_left_goes() -> None:
    claim = Entry("merges/ten/v2/claims/abc", 0, OLD)
    part = Entry("merges/ten/v3/backbone.safetensors", 9, OLD)
    whole = Entry("merges/x/v1/backbone.safetensors", 9, OLD)
    found = Inventory(
        (claim, part, whole, Entry(MANIFEST, 2, OLD), record()),
        (Entry(".tmp/x", 4, OLD), Entry(".tmp/y", 4, NEW)),
        {MANIFEST: "{}"},
        {record().key: None},  # it cannot be read
    )
    sweep = plan_sweep(found, set(), LIMIT)
    assert keys(sweep) == [".tmp/x", claim.key, part.key, record().key]
    assert [item.leftover for item in sweep.garbage] == [True, False, False, False]
    assert sweep.young == 1


def test_what_tintray_did_not_make_is_never_garbage() -> None:
    foreign = ["catalog.db", "blobs/readme.txt", "blobs/00/short", "notes/a", f"blobs/ff/{A}"]
    found = Inventory(tuple(Entry(key, 1, OLD) for key in foreign), (), {}, {})
    assert keys(plan_sweep(found, set(), LIMIT)) == []
    assert [key for key in foreign if is_ours(key)] == [foreign[1], foreign[2], foreign[4]]


hashes, ages = st.sampled_from(HASHES), st.sampled_from([OLD, NEW])


@given(
    *(st.dictionaries(hashes, ages), st.dictionaries(hashes, ages)),
    st.dictionaries(st.sampled_from("klmn"), st.tuples(hashes, ages)),
    *(st.sets(hashes), st.sets(hashes)),
)
def test_nothing_needed_or_young_ever_goes_and_one_sweep_is_enough(
    blobs: dict[str, float],
    blocks: dict[str, float],
    records: dict[str, tuple[str, float]],
    needed: set[str],
    named: set[str],
) -> None:
    entries = [blob(sha256, age) for sha256, age in blobs.items()]
    entries += [blocks_of(sha256, age) for sha256, age in blocks.items()]
    entries += [record(name, age) for name, (_, age) in records.items()]
    recorded: dict[str, str | None] = {record(n).key: sha for n, (sha, _) in records.items()}
    manifests = {MANIFEST: " ".join(sorted(named))}
    sweep = plan_sweep(Inventory(tuple(entries), (), manifests, recorded), needed, LIMIT)
    gone = set(keys(sweep))
    for sha256 in needed | named:
        assert not gone & {blob_key(sha256), blocks_of(sha256).key}
    assert not gone & {entry.key for entry in entries if entry.modified >= LIMIT}
    rest = tuple(entry for entry in entries if entry.key not in gone)
    left = {key: sha256 for key, sha256 in recorded.items() if key not in gone}
    assert keys(plan_sweep(Inventory(rest, (), manifests, left), needed, LIMIT)) == []
