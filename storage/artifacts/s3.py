"""The artifact store in an S3-compatible bucket: parts in parallel, memory bounded."""

from __future__ import annotations

import io
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

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
from tintray.storage.artifacts.deadlines import Connections, OverdueError, Watch
from tintray.storage.artifacts.local import replacing
from tintray.storage.artifacts.protocol import Entry, Leftover, Observer, Source
from tintray.storage.artifacts.s3_client import (
    MISSING,
    S3Options,
    error_code,
    failures,
    make_client,
    overdue,
)
from tintray.storage.artifacts.urls import RESERVED, S3Url, check_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef, HeadObjectOutputTypeDef
    from s3transfer.futures import TransferFuture

_CHUNK = 1 << 20
_TAKEN = {"PreconditionFailed", "412"}
_UPLOAD = "?uploadId="  # between the key and the id of an upload in parts that has not ended
_BUSY = {"ConditionalRequestConflict", "409"}
_NO_COPY = {"InvalidRequest", "EntityTooLarge", "NotImplemented", "501", "InvalidArgument"}
_UNCONDITIONAL = {"NotImplemented", "501"}
_BROKEN = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, HTTPError, OSError)


class S3Store:
    """Artifacts as objects below a prefix of one bucket.

    A PUT is atomic in S3; an upload in parts becomes visible when it is completed. Threads may
    share a store; a copy sent to another process opens its own connections there.
    """

    def __init__(self, place: S3Url, options: S3Options | None = None):
        self.url = str(place)
        self._place = place
        self._options = options or S3Options()
        self._base = f"{place.prefix}/" if place.prefix else ""
        self.proved: dict[str, str] = {}
        self._lock = threading.Lock()
        self._connected: tuple[S3Client, TransferManager, Connections] | None = None

    def __reduce__(self) -> tuple[type[S3Store], tuple[S3Url, S3Options]]:
        return type(self), (self._place, self._options)

    def put(self, key: str, source: Source, *, overwrite: bool = False) -> bool:
        """See ``ArtifactStore.put``."""
        name = self._name(key)
        size = source.stat().st_size if isinstance(source, Path) else memoryview(source).nbytes
        with self._operation(f"writing {key}", size) as watch:
            if size <= self._options.part_size:
                data = source.read_bytes() if isinstance(source, Path) else bytes(source)
                return self._put_small(name, data, overwrite)
            # An upload in parts has no portable condition: what is large is a blob, and a second
            # writer of a blob writes the same bytes.
            if not overwrite and self.exists(key):
                return False
            body = str(source) if isinstance(source, Path) else io.BytesIO(source)
            _wait(self._transfers.upload(body, self._place.bucket, name), watch)
            return True

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See ``ArtifactStore.get``."""
        if stop is not None and stop <= start:
            if self.exists(key):
                return b""
            raise self._missing(key)
        name = self._name(key)
        with self._operation(f"reading {key}") as watch:
            try:
                return self._read(name, start, stop, watch)
            except ClientError as error:
                if error_code(error) in MISSING:
                    raise self._missing(key) from None
                if error_code(error) in ("InvalidRange", "416"):  # begins behind the end
                    return b""
                raise

    def fetch(self, key: str, destination: Path, *, observe: Observer | None = None) -> Path:
        """See ``ArtifactStore.fetch``."""
        name = self._name(key)
        with replacing(destination) as file, self._operation(f"reading {key}") as watch:
            try:
                head = self._client.head_object(Bucket=self._place.bucket, Key=name)
                watch.extend(head["ContentLength"] / self._options.slowest)
                sink = cast("IO[bytes]", _Sink(file, observe))  # all that it calls is write()
                transfer = self._transfers.download(
                    self._place.bucket, name, sink, subscribers=[_Known(head)]
                )
                _wait(transfer, watch)
            except ClientError as error:
                if error_code(error) in MISSING:
                    raise self._missing(key) from None
                raise
        return destination

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See ``ArtifactStore.list``."""
        for entry in self._objects(prefix):
            if not entry.key.startswith(f"{RESERVED}/"):
                yield entry

    def _objects(self, prefix: str) -> Iterator[Entry]:
        action = f"listing {prefix or 'everything'}"
        with self._operation(action):
            paginator = self._client.get_paginator("list_objects_v2")
        pages = iter(paginator.paginate(Bucket=self._place.bucket, Prefix=self._base + prefix))
        while True:
            with self._operation(action):  # a page at a time: what is done with it is not ours
                page = next(pages, None)
            if page is None:
                return
            for item in page.get("Contents", []):
                key = item["Key"][len(self._base) :]
                yield Entry(key, item["Size"], item["LastModified"].timestamp())

    def delete(self, key: str) -> None:
        """See ``ArtifactStore.delete``."""
        name = self._name(key)
        with self._operation(f"deleting {key}"):
            self._client.delete_object(Bucket=self._place.bucket, Key=name)

    def stat(self, key: str) -> Entry | None:
        """See ``ArtifactStore.stat``."""
        name = self._name(key)
        with self._operation(f"reading {key}"):
            try:
                answer = self._client.head_object(Bucket=self._place.bucket, Key=name)
                modified = answer["LastModified"].timestamp()
                return Entry(key, answer["ContentLength"], modified, answer.get("ETag", ""))
            except ClientError as error:
                if error_code(error) in MISSING:
                    return None
                raise

    def size(self, key: str) -> int | None:
        """See ``ArtifactStore.size``."""
        found = self.stat(key)
        return None if found is None else found.size

    def exists(self, key: str) -> bool:
        """See ``ArtifactStore.exists``."""
        return self.size(key) is not None

    def local_path(self, key: str) -> None:
        """None: an object has no file here."""
        check_key(key)

    def touch(self, key: str) -> bool:
        """See ``ArtifactStore.touch``: a copy of the object onto itself."""
        name = self._name(key)
        place = self._place.bucket
        with self._operation(f"touching {key}"):
            try:
                self._client.copy_object(
                    Bucket=place,
                    Key=name,
                    CopySource={"Bucket": place, "Key": name},
                    MetadataDirective="REPLACE",
                )
            except ClientError as error:  # too large for one copy, gone, or not known here
                if error_code(error) in MISSING | _NO_COPY:
                    return False
                raise
        return True

    def leftovers(self) -> Iterator[Leftover]:
        """See ``ArtifactStore.leftovers``: probes, and uploads in parts."""
        for entry in self._objects(f"{RESERVED}/"):
            yield Leftover(entry.key, entry.size, entry.modified)
        with self._operation("listing unfinished uploads"):
            paginator = self._client.get_paginator("list_multipart_uploads")
            try:
                pages = list(paginator.paginate(Bucket=self._place.bucket, Prefix=self._base))
            except ClientError as error:
                if error_code(error) in _UNCONDITIONAL:  # a server without such a listing
                    return
                raise
        for page in pages:
            for item in page.get("Uploads", []):
                key = item["Key"][len(self._base) :]
                name = f"{key}{_UPLOAD}{item['UploadId']}"
                yield Leftover(name, 0, item["Initiated"].timestamp())

    def discard(self, leftover: Leftover) -> None:
        """See ``ArtifactStore.discard``."""
        key, mark, upload = leftover.name.rpartition(_UPLOAD)
        bucket = self._place.bucket
        with self._operation(f"deleting {leftover.name}"):
            if not mark:
                self._client.delete_object(Bucket=bucket, Key=self._base + leftover.name)
                return
            try:
                name = self._base + key
                self._client.abort_multipart_upload(Bucket=bucket, Key=name, UploadId=upload)
            except ClientError as error:
                if error_code(error) not in MISSING | {"NoSuchUpload"}:
                    raise

    def check_writable(self) -> None:
        """See ``ArtifactStore.check_writable``."""
        probe = f"{self._base}{RESERVED}/{uuid.uuid4().hex}"
        with self._operation("writing a probe"):
            self._client.put_object(Bucket=self._place.bucket, Key=probe, Body=b"tintray")
            self._client.delete_object(Bucket=self._place.bucket, Key=probe)

    def _put_small(self, name: str, data: bytes, overwrite: bool) -> bool:
        """One PUT; without ``overwrite`` on the condition that there is no such object."""
        bucket = self._place.bucket
        for _ in range(0 if overwrite else self._options.attempts):
            try:
                self._client.put_object(Bucket=bucket, Key=name, Body=data, IfNoneMatch="*")
                return True
            except ClientError as error:
                if error_code(error) in _TAKEN:
                    return False
                if error_code(error) in _UNCONDITIONAL:
                    if self.exists(name[len(self._base) :]):
                        return False
                    break
                if error_code(error) not in _BUSY:
                    raise
        self._client.put_object(Bucket=bucket, Key=name, Body=data)
        return True

    def _read(self, name: str, start: int, stop: int | None, watch: Watch) -> bytes:
        """Bytes of an object, going on where a connection broke."""
        data = bytearray()
        request: GetObjectRequestTypeDef = {"Bucket": self._place.bucket, "Key": name}
        for attempt in range(self._options.attempts):
            try:
                if (first := start + len(data)) or stop is not None:
                    request["Range"] = f"bytes={first}-{'' if stop is None else stop - 1}"
                answer = self._client.get_object(**request)
                if "IfMatch" not in request:
                    watch.extend(answer["ContentLength"] / self._options.slowest)
                request["IfMatch"] = answer["ETag"]  # if it must go on, then in the same version
                for chunk in answer["Body"].iter_chunks(_CHUNK):
                    data += chunk
                break
            except FlexibleChecksumError:  # altered on the way: nothing of it can be used
                data.clear()
                if attempt + 1 == self._options.attempts:
                    raise
            except _BROKEN:
                if attempt + 1 == self._options.attempts:
                    raise
        return bytes(data)

    def _name(self, key: str) -> str:
        return self._base + check_key(key)

    def _missing(self, key: str) -> NotFoundError:
        return NotFoundError(f"artifact {key} is not in the store {self.url}")

    @property
    def _client(self) -> S3Client:
        return self._connect()[0]

    @property
    def _transfers(self) -> TransferManager:
        return self._connect()[1]

    def _connect(self) -> tuple[S3Client, TransferManager, Connections]:
        with self._lock:
            if self._connected is None:
                client = make_client(self._place, self._options)
                transfers = _transfers(client, self._options)
                self._connected = client, transfers, Connections(client)
            return self._connected

    @contextmanager
    def _operation(self, action: str, size: int = 0) -> Iterator[Watch]:
        """Something that moves ``size`` bytes: it ends in time, and fails in one sentence."""
        client, _, connections = self._connect()
        endpoint = client.meta.endpoint_url
        seconds = self._options.deadline + size / self._options.slowest
        began = time.monotonic()
        with failures(self._place, endpoint, action):
            try:
                with connections.watched(seconds) as watch:
                    yield watch
            except OverdueError as error:
                took = time.monotonic() - began
                raise overdue(self._place, endpoint, action, took) from error


class _Sink:
    """Where a download goes: without seek, so that its parts arrive in order."""

    def __init__(self, file: BinaryIO, observe: Observer | None):
        self._file = file
        self._observe = observe

    def write(self, data: bytes) -> int:
        if self._observe is not None:
            self._observe(data)
        return self._file.write(data)


class _Known(BaseSubscriber):
    """What a HEAD has said already, so that a transfer does not ask again."""

    def __init__(self, head: HeadObjectOutputTypeDef):
        self._head = head

    def on_queued(self, future: TransferFuture, **_: object) -> None:
        """Called by the transfer before it begins."""
        future.meta.provide_transfer_size(self._head["ContentLength"])
        future.meta.provide_object_etag(self._head["ETag"])


def _wait(future: TransferFuture, watch: Watch) -> None:
    """Wait for a transfer; when its time is over its other threads are told to stop."""
    watch.cancel = future.cancel
    future.result()


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
    return TransferManager(client, config)
