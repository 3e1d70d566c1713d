"""What is garbage and what is not, decided by a pure function."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tintray.storage.artifacts.blobs import blob_key
from tintray.storage.artifacts.protocol import Entry, Leftover
from tintray.storage.artifacts.sweep import Inventory, Sweep, is_ours, named_hashes, plan_sweep

OLD, LIMIT, NEW = 10.0, 100.0, 200.0
HASHES = [letter * 64 for letter in "0123456789abcdef"]
A, B, C = HASHES[:3]


def inventory(
    *entries: Entry,
    leftovers: tuple[Leftover, ...] = (),
    manifests: dict[str, str] | None = None,
    records: dict[str, str | None] | None = None,
) -> Inventory:
    return Inventory(entries, leftovers, manifests or {}, records or {})


def blob(sha256: str, modified: float = OLD, size: int = 5) -> Entry:
    return Entry(blob_key(sha256), size, modified)


def keys(sweep: Sweep) -> list[str]:
    return [item.key for item in sweep.garbage]


def test_what_nobody_needs_goes_and_what_somebody_needs_stays() -> None:
    sweep = plan_sweep(inventory(blob(A), blob(B, size=7)), {A}, LIMIT)
    assert keys(sweep) == [blob_key(B)]
    assert (sweep.kept, sweep.kept_bytes, sweep.young) == (1, 5, 0)
    assert sweep.garbage[0].sha256 == B


def test_what_a_manifest_names_stays_even_if_the_catalog_does_not_know_it() -> None:
    text = f'{{"files": {{"x": {{"sha256": "{A}"}}}}, "task_vector": "{B}", damaged'
    found = inventory(blob(A), blob(B), blob(C), manifests={"merges/x/v1/manifest.json": text})
    assert keys(plan_sweep(found, set(), LIMIT)) == [blob_key(C)]
    assert named_hashes(text) == {A, B}


def test_what_is_young_stays_and_makes_what_belongs_to_it_young() -> None:
    record = Entry("cache/labels/k.json", 3, NEW)
    named: dict[str, str | None] = {record.key: A}
    for young in (
        inventory(blob(A, NEW)),
        inventory(blob(A), Entry(f"{blob_key(A)}.blocks", 1, NEW)),
        inventory(blob(A), record, records=named),
    ):
        sweep = plan_sweep(young, set(), LIMIT)
        assert keys(sweep) == []
        assert sweep.young == sweep.kept == len(young.entries)


def test_what_belongs_to_a_blob_goes_before_it() -> None:
    record, blocks = Entry("cache/labels/k.json", 3, OLD), Entry(f"{blob_key(A)}.blocks", 1, OLD)
    found = inventory(blocks, blob(A), record, records={record.key: A})
    assert keys(plan_sweep(found, set(), LIMIT)) == [blocks.key, record.key, blob_key(A)]
    assert keys(plan_sweep(found, {A}, LIMIT)) == []


def test_what_belongs_to_a_blob_that_is_gone_goes() -> None:
    record, blocks = Entry("cache/labels/k.json", 3, OLD), Entry(f"{blob_key(B)}.blocks", 1, OLD)
    sweep = plan_sweep(inventory(record, blocks, records={record.key: A}), set(), LIMIT)
    assert keys(sweep) == [record.key, blocks.key]
    assert all("its blob is gone" in item.reason for item in sweep.garbage)


def test_what_killed_writers_left_goes() -> None:
    claim = Entry("merges/ten/v2/claims/abc", 0, OLD)
    part = Entry("merges/ten/v3/backbone.safetensors", 9, OLD)
    whole = Entry("merges/ten/v1/backbone.safetensors", 9, OLD)
    manifest = Entry("merges/ten/v1/manifest.json", 2, OLD)
    damaged = Entry("cache/labels/k.json", 3, OLD)
    found = inventory(
        *(claim, part, whole, manifest, damaged),
        leftovers=(Leftover(".tmp/x", 4, OLD), Leftover(".tmp/y", 4, NEW)),
        manifests={manifest.key: "{}"},
        records={damaged.key: None},
    )
    sweep = plan_sweep(found, set(), LIMIT)
    assert keys(sweep) == [".tmp/x", claim.key, part.key, damaged.key]
    assert [item.leftover for item in sweep.garbage] == [True, False, False, False]
    assert sweep.young == 1


def test_what_tintray_did_not_make_is_never_garbage() -> None:
    foreign = ["catalog.db", "blobs/readme.txt", "blobs/00/short", "notes/a", f"blobs/ff/{A}"]
    assert keys(plan_sweep(inventory(*(Entry(k, 1, OLD) for k in foreign)), set(), LIMIT)) == []
    assert [key for key in foreign if is_ours(key)] == [foreign[1], foreign[2], foreign[4]]


hashes = st.sampled_from(HASHES)
ages = st.sampled_from([OLD, NEW])


@given(
    blobs=st.dictionaries(hashes, ages),
    blocks=st.dictionaries(hashes, ages),
    records=st.dictionaries(st.sampled_from("klmn"), st.tuples(hashes, ages)),
    needed=st.sets(hashes),
    named=st.sets(hashes),
)
def test_nothing_needed_or_young_ever_goes_and_one_sweep_is_enough(
    blobs: dict[str, float],
    blocks: dict[str, float],
    records: dict[str, tuple[str, float]],
    needed: set[str],
    named: set[str],
) -> None:
    entries = [blob(sha256, age) for sha256, age in blobs.items()]
    entries += [Entry(f"{blob_key(sha256)}.blocks", 1, age) for sha256, age in blocks.items()]
    entries += [Entry(f"cache/labels/{k}.json", 1, age) for k, (_, age) in records.items()]
    recorded: dict[str, str | None] = {f"cache/labels/{k}.json": s for k, (s, _) in records.items()}
    manifests = {"merges/x/v1/manifest.json": " ".join(sorted(named))}
    found = inventory(*entries, manifests=manifests, records=recorded)
    sweep = plan_sweep(found, needed, LIMIT)
    gone = set(keys(sweep))
    for sha256 in needed | named:
        assert blob_key(sha256) not in gone
        assert f"{blob_key(sha256)}.blocks" not in gone
    assert not gone & {entry.key for entry in entries if entry.modified >= LIMIT}
    rest = [entry for entry in entries if entry.key not in gone]
    left = {key: sha256 for key, sha256 in recorded.items() if key not in gone}
    again = inventory(*rest, manifests=manifests, records=left)
    assert keys(plan_sweep(again, needed, LIMIT)) == []
