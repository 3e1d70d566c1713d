"""What only a folder store does: its files, links, durability, and its own ways to fail."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tintray.errors import InputError, StorageError, TintrayError
from tintray.storage.artifacts.folder import FolderStore
from tintray.storage.artifacts.publish import list_merges, publish_merge


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_files_are_read_only_and_a_write_that_fails_half_way_leaves_none(
    folder: FolderStore, tmp_path: Path
) -> None:
    for content in (b"x", b"y"):
        folder.put("a/b", content)
    assert stat.S_IMODE(folder.local_path("a/b").stat().st_mode) & 0o222 == 0
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(StorageError, match="no file that large: writing big"):
            folder.put("big", source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [entry.key for entry in folder.list()] == ["a/b"]
    assert list((folder.root / ".tmp").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_and_a_read_only_one_are_one_sentence_and_no_merge(small_disk: Path) -> None:
    folder = FolderStore(small_disk / "store")
    with pytest.raises(StorageError, match=r"store is full: writing blobs/.*; free some space"):
        publish_merge(folder, "big", {"small": b"x", "weights": bytes(2_000_000)}, {}, version=1)
    assert list_merges(folder) == []
    folder.check_writable()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for use in (folder.check_writable, lambda: folder.put("a", b"x")):
        with pytest.raises(StorageError, match=r"refused \(read-only file system\); give"):
            use()


def _as_nobody(action: Callable[[], object]) -> str:
    """What ``action`` raises in a process without rights, as text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        message = "nothing was raised"
        try:
            if not os.geteuid():
                os.setgroups([])
                os.setuid(65534)
            action()
        except TintrayError as error:
            message = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, message.encode())
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:  # noqa: PTH123
        message = pipe.read().decode()
    os.waitpid(child, 0)
    return message


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_folder_without_the_right_to_write_is_one_sentence(tmp_path: Path) -> None:
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o111)
    tmp_path.chmod(0o555)
    folder = FolderStore(tmp_path)
    for action in (folder.check_writable, lambda: folder.put("a", b"x")):
        message = _as_nobody(action)
        assert message.startswith(f"StorageError: the artifact store {tmp_path} cannot be used")
        assert "refused (permission denied); give this user the right" in message
    tmp_path.chmod(0o755)


def test_a_file_in_the_place_of_the_store_is_one_sentence(folder: FolderStore) -> None:
    folder.root.write_text("not a folder")
    with pytest.raises(StorageError, match="needs a folder where there is a file"):
        folder.check_writable()


def test_a_symbolic_link_leads_to_the_store_and_not_out_of_it(tmp_path: Path) -> None:
    outside, real = tmp_path / "outside", tmp_path / "real"
    for made in (outside, real):
        made.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("real")
    folder = FolderStore(tmp_path / "link")
    folder.put("a", b"x")
    assert (real / "a").read_bytes() == b"x"
    (real / "way").symlink_to(outside)
    for use in (lambda: folder.get("way/secret"), lambda: folder.put("way/new", b"")):
        with pytest.raises(InputError, match="symbolic link that leads out"):
            use()
    assert [entry.key for entry in folder.list()] == ["a"]
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]


def test_opening_a_store_by_url_loads_no_client() -> None:
    code = (
        "import sys; import tintray.storage.artifacts.urls\n"
        "from tintray.storage.artifacts.store import open_store;"
        "open_store('.'); print(sorted({'boto3', 'sqlalchemy', 'torch'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
