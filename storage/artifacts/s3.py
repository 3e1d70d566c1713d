"""The artifact store in an S3-compatible bucket: parts in parallel, memory bounded."""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, TypeVar, cast

from botocore.exceptions import (
    ClientError,
    FlexibleChecksumError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.subscribers import BaseSubscriber
from urllib3.exceptions import HTTPError

from tintray.errors import NotFoundError
from tintray.storage.artifacts.deadlines import Deadline, Threads, finish
from tintray.storage.artifacts.local import replacing
from tintray.storage.artifacts.protocol import ArtifactStore, Entry, Observer, Pieces, Source
from tintray.storage.artifacts.s3_client import (
    MISSING,
    S3Options,
    error_code,
    failures,
    make_client,
)
from tintray.storage.artifacts.urls import RESERVED, S3Url, check_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        CopySourceTypeDef,
        GetObjectRequestTypeDef,
        HeadObjectOutputTypeDef,
        ListMultipartUploadsOutputTypeDef,
    )
    from s3transfer.futures import TransferFuture

Result = TypeVar("Result")

_CHUNK = 256 << 10  # bytes between two looks at the clock
_TAKEN = {"PreconditionFailed", "412"}
_UPLOAD = "?uploadId="  # between the key and the id of an upload in parts that has not ended
_BUSY = {"ConditionalRequestConflict", "409"}
_NO_COPY = {"InvalidRequest", "EntityTooLarge", "NotImplemented", "501", "InvalidArgument"}
_UNCONDITIONAL = {"NotImplemented", "501"}
_BEHIND_THE_END = {"InvalidRange", "416"}
_BROKEN = (
    *(FlexibleChecksumError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError),
    *(HTTPError, OSError),
)


class S3Store(ArtifactStore):
    """Artifacts as objects below a prefix of one bucket.

    Threads may share a store; a copy sent to another process opens its own connections there.
    """

    def __init__(self, place: S3Url, options: S3Options | None = None):
        self.url = str(place)
        self._place = place
        self._options = options or S3Options()
        self._base = f"{place.prefix}/" if place.prefix else ""
        self.proved = {}
        self._lock = threading.Lock()
        self._connected: tuple[S3Client, TransferManager] | None = None

    def __reduce__(self) -> tuple[type[S3Store], tuple[S3Url, S3Options]]:
        return type(self), (self._place, self._options)

    def put(self, key: str, source: Source, *, overwrite: bool = False) -> bool:
        """See ``ArtifactStore.put``."""
        name = self._name(key)
        size = _size(source)

        def write(deadline: Deadline) -> bool:
            if size <= self._options.part_size:
                return self._put_small(name, _whole(source), overwrite)
            # An upload in parts has no portable condition: what is large is a blob, and a second
            # writer of a blob writes the same bytes.
            if not overwrite and self.exists(key):
                return False
            _complete(self._transfers.upload(_body(source), self._place.bucket, name), deadline)
            return True

        return self._do(f"writing {key}", write, size)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See ``ArtifactStore.get``."""
        name = self._name(key)

        def read(deadline: Deadline) -> bytes:
            with self._present(key):
                if stop is not None and stop <= start:
                    self._client.head_object(Bucket=self._place.bucket, Key=name)
                    return b""
                try:
                    return self._read(name, start, stop, deadline)
                except ClientError as error:
                    if error_code(error) in _BEHIND_THE_END:
                        return b""
                    raise

        return self._do(f"reading {key}", read)

    def fetch(self, key: str, destination: Path, *, observe: Observer | None = None) -> Path:
        """See ``ArtifactStore.fetch``."""
        name, bucket = self._name(key), self._place.bucket
        with replacing(destination) as file:

            def copy(deadline: Deadline) -> None:
                with self._present(key):
                    head = self._client.head_object(Bucket=bucket, Key=name)
                    deadline.extend(head["ContentLength"] / self._options.slowest)
                    sink = cast("IO[bytes]", _Sink(file, observe))  # all that it calls is write()
                    known = [_Known(head)]
                    copied = self._transfers.download(bucket, name, sink, subscribers=known)
                    _complete(copied, deadline)

            self._do(f"reading {key}", copy)
        return destination

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See ``ArtifactStore.list``."""
        for entry in self._objects(prefix):
            if not entry.key.startswith(f"{RESERVED}/"):
                yield entry

    def _objects(self, prefix: str) -> Iterator[Entry]:
        action = f"listing {prefix or 'everything'}"
        paginator = self._do(action, lambda _: self._client.get_paginator("list_objects_v2"))
        pages = iter(paginator.paginate(Bucket=self._place.bucket, Prefix=self._base + prefix))
        # A page at a time: what is done with it is not ours.
        while (page := self._do(action, lambda _: next(pages, None))) is not None:
            for item in page.get("Contents", []):
                key = item["Key"][len(self._base) :]
                yield Entry(key, item["Size"], item["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        """See ``ArtifactStore.delete``."""
        self._delete(self._name(key), f"deleting {key}")

    def _delete(self, name: str, action: str) -> None:
        bucket = self._place.bucket
        self._do(action, lambda _: self._client.delete_object(Bucket=bucket, Key=name))

    def stat(self, key: str) -> Entry | None:
        """See ``ArtifactStore.stat``."""
        name, bucket = self._name(key), self._place.bucket

        def ask(_: Deadline) -> Entry:
            with self._present(key):
                answer = self._client.head_object(Bucket=bucket, Key=name)
            size, modified = answer["ContentLength"], answer["LastModified"].timestamp()
            return Entry(key, size, modified, answer.get("ETag", ""))

        try:
            return self._do(f"reading {key}", ask)
        except NotFoundError:
            return None

    def local_path(self, key: str) -> None:
        """None: an object has no file here."""
        check_key(key)

    def touch(self, key: str) -> bool:
        """See ``ArtifactStore.touch``: a copy of the object onto itself."""
        bucket, name = self._place.bucket, self._name(key)

        def copy(_: Deadline) -> bool:
            source: CopySourceTypeDef = {"Bucket": bucket, "Key": name}
            done: object = None
            with self._unless(MISSING | _NO_COPY):  # gone, or too large for one copy
                done = self._client.copy_object(
                    Bucket=bucket, Key=name, CopySource=source, MetadataDirective="REPLACE"
                )
            return done is not None

        return self._do(f"touching {key}", copy)

    def leftovers(self) -> Iterator[Entry]:
        """See ``ArtifactStore.leftovers``: probes, and uploads in parts."""
        yield from self._objects(f"{RESERVED}/")
        for page in self._do("listing unfinished uploads", self._uploads):
            for item in page.get("Uploads", []):
                key = item["Key"][len(self._base) :]
                name = f"{key}{_UPLOAD}{item['UploadId']}"
                yield Entry(name, 0, item["Initiated"].timestamp())

    def _uploads(self, _: Deadline) -> Sequence[ListMultipartUploadsOutputTypeDef]:
        paginator = self._client.get_paginator("list_multipart_uploads")
        pages: list[ListMultipartUploadsOutputTypeDef] = []
        with self._unless(_UNCONDITIONAL):  # a server without such a listing
            pages += paginator.paginate(Bucket=self._place.bucket, Prefix=self._base)
        return pages

    def discard(self, leftover: str) -> None:
        """See ``ArtifactStore.discard``."""
        key, mark, upload = leftover.rpartition(_UPLOAD)
        bucket, action = self._place.bucket, f"deleting {leftover}"
        if not mark:
            self._delete(self._base + leftover, action)
            return

        def abort(_: Deadline) -> None:
            name = self._base + key
            with self._unless(MISSING | {"NoSuchUpload"}):
                self._client.abort_multipart_upload(Bucket=bucket, Key=name, UploadId=upload)

        self._do(action, abort)

    def check_writable(self) -> None:
        """See ``ArtifactStore.check_writable``."""
        probe = f"{self._base}{RESERVED}/{uuid.uuid4().hex}"
        self._do("writing a probe", lambda _: self._put_small(probe, b"tintray", overwrite=True))
        self._delete(probe, "writing a probe")

    def _put_small(self, name: str, data: bytes, overwrite: bool) -> bool:
        """One PUT; without ``overwrite`` on the condition that there is no such object."""
        bucket = self._place.bucket
        for _ in range(0 if overwrite else self._options.attempts):
            try:
                self._client.put_object(Bucket=bucket, Key=name, Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                if error_code(error) in _TAKEN:
                    if self.exists(name[len(self._base) :]):
                        return False
                    continue  # a server may answer so to a request that was altered on the way
                if error_code(error) in _UNCONDITIONAL:
                    if self.exists(name[len(self._base) :]):
                        return False
                    break
                if error_code(error) not in _BUSY:
                    raise
        self._client.put_object(Bucket=bucket, Key=name, Body=data)
        return True

    def _read(self, name: str, start: int, stop: int | None, deadline: Deadline) -> bytes:
        """Bytes of an object, going on where a connection broke."""
        data = bytearray()
        request: GetObjectRequestTypeDef = {"Bucket": self._place.bucket, "Key": name}
        for attempt in range(self._options.attempts):
            try:
                if (first := start + len(data)) or stop is not None:
                    request["Range"] = f"bytes={first}-{'' if stop is None else stop - 1}"
                answer = self._client.get_object(**request)
                if "IfMatch" not in request:
                    deadline.extend(answer["ContentLength"] / self._options.slowest)
                request["IfMatch"] = answer["ETag"]  # if it must go on, then in the same version
                with closing(answer["Body"]) as body:
                    for chunk in body.iter_chunks(_CHUNK):
                        data += chunk
                        deadline.check()
                break
            except _BROKEN as error:
                if attempt + 1 == self._options.attempts:
                    raise
                if isinstance(error, FlexibleChecksumError):  # altered on the way: none is of use
                    data.clear()
        return bytes(data)

    def _name(self, key: str) -> str:
        return self._base + check_key(key)

    @contextmanager
    def _unless(self, codes: Collection[str]) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if error_code(error) not in codes:
                raise

    @contextmanager
    def _present(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if error_code(error) in MISSING:
                raise NotFoundError(f"artifact {key} is not in the store {self.url}") from None
            raise

    @property
    def _client(self) -> S3Client:
        return self._connect()[0]

    @property
    def _transfers(self) -> TransferManager:
        return self._connect()[1]

    def _connect(self) -> tuple[S3Client, TransferManager]:
        with self._lock:
            if self._connected is None:
                client = make_client(self._place, self._options)
                self._connected = client, _transfers(client, self._options)
            return self._connected

    def _do(self, action: str, work: Callable[[Deadline], Result], size: int = 0) -> Result:
        """Work that moves ``size`` bytes: it ends in time, and fails in one sentence."""
        endpoint, options = self._client.meta.endpoint_url, self._options
        deadline = Deadline(options.deadline + size / options.slowest, options.clock)
        with failures(self._place, endpoint, action):
            return finish(work, deadline)


class _Sink:
    """Where a download goes: without seek, so that its parts arrive in order."""

    def __init__(self, file: BinaryIO, observe: Observer | None):
        self._file = file
        self._observe = observe

    def write(self, data: bytes) -> int:
        if self._observe is not None:
            self._observe(data)
        return self._file.write(data)


class _Reader:
    """Pieces as a file that is read once, from its begin to its end."""

    def __init__(self, pieces: Pieces):
        self._rest, self._piece = iter(pieces), memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """The next bytes, ``size`` of them or all; fewer at the end."""
        found = bytearray()
        while size < 0 or len(found) < size:
            if not self._piece:
                self._piece = next(self._rest, memoryview(b""))
                if not self._piece:
                    break
            taken = len(self._piece) if size < 0 else size - len(found)
            found += self._piece[:taken]
            self._piece = self._piece[taken:]
        return bytes(found)


def _size(source: Source) -> int:
    if isinstance(source, Path):
        return source.stat().st_size
    return memoryview(source).nbytes if isinstance(source, bytes | memoryview) else source.size


def _whole(source: Source) -> bytes:
    if isinstance(source, Path):
        return source.read_bytes()
    return bytes(source) if isinstance(source, bytes | memoryview) else b"".join(source)


def _body(source: Source) -> str | IO[bytes]:
    """What the transfer of a large artifact reads."""
    if isinstance(source, Path):
        return str(source)
    if isinstance(source, bytes | memoryview):
        return io.BytesIO(source)
    return cast("IO[bytes]", _Reader(source))  # all that it calls is read()


class _Known(BaseSubscriber):
    """What a HEAD has said already, so that a transfer does not ask again."""

    def __init__(self, head: HeadObjectOutputTypeDef):
        self._head = head

    def on_queued(self, future: TransferFuture, **_: object) -> None:
        """Tell the transfer, before it begins."""
        future.meta.provide_transfer_size(self._head["ContentLength"])
        future.meta.provide_object_etag(self._head["ETag"])


def _complete(transfer: TransferFuture, deadline: Deadline) -> None:
    """Wait for a transfer; when its time is over, its own threads are told to stop."""
    deadline.on_end = transfer.cancel
    transfer.result()


def _transfers(client: S3Client, options: S3Options) -> TransferManager:
    """boto3's own machinery for parts, one for all threads: its memory is bounded as a whole."""
    config = TransferConfig(
        multipart_threshold=options.part_size + 1,
        multipart_chunksize=options.part_size,
        max_request_concurrency=options.threads,
        max_in_memory_upload_chunks=options.parts_in_memory,
        max_in_memory_download_chunks=options.parts_in_memory,
        num_download_attempts=options.attempts,
        io_chunksize=_CHUNK,
    )
    return TransferManager(client, config, executor_cls=Threads)
