"""The artifact store in an S3-compatible bucket: parts in parallel, memory bounded."""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
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

from storage.artifacts import Entry, Observer, Source
from storage.local import replacing
from storage.s3_client import MISSING, S3Options, error_code, failures, make_client
from storage.urls import RESERVED, S3Url, check_key
from tintray.errors import NotFoundError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef

_CHUNK = 1 << 20
_TAKEN = {"PreconditionFailed", "412"}
_BUSY = {"ConditionalRequestConflict", "409"}
_UNCONDITIONAL = {"NotImplemented", "501"}
_BROKEN = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError, OSError)


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
        self._lock = threading.Lock()
        self._connected: tuple[S3Client, TransferManager] | None = None

    def __reduce__(self) -> tuple[type[S3Store], tuple[S3Url, S3Options]]:
        return type(self), (self._place, self._options)

    def put(self, key: str, source: Source, *, overwrite: bool = False) -> bool:
        """See :meth:`storage.artifacts.ArtifactStore.put`."""
        name = self._name(key)
        size = source.stat().st_size if isinstance(source, Path) else memoryview(source).nbytes
        with self._failures(f"writing {key}"):
            if size <= self._options.part_size:
                data = source.read_bytes() if isinstance(source, Path) else bytes(source)
                return self._put_small(name, data, overwrite)
            # An upload in parts has no portable condition: what is large is a blob, and a second
            # writer of a blob writes the same bytes.
            if not overwrite and self.exists(key):
                return False
            body = str(source) if isinstance(source, Path) else io.BytesIO(source)
            self._transfers.upload(body, self._place.bucket, name).result()
            return True

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """See :meth:`storage.artifacts.ArtifactStore.get`."""
        if stop is not None and stop <= start:
            if self.exists(key):
                return b""
            raise self._missing(key)
        name = self._name(key)
        with self._failures(f"reading {key}"):
            try:
                return self._read(name, start, stop)
            except ClientError as error:
                if error_code(error) in MISSING:
                    raise self._missing(key) from None
                if error_code(error) in ("InvalidRange", "416"):  # begins behind the end
                    return b""
                raise

    def fetch(self, key: str, destination: Path, *, observe: Observer | None = None) -> Path:
        """See :meth:`storage.artifacts.ArtifactStore.fetch`."""
        name = self._name(key)
        with replacing(destination) as file, self._failures(f"reading {key}"):
            try:
                sink = cast("IO[bytes]", _Sink(file, observe))  # all that it calls is write()
                self._transfers.download(self._place.bucket, name, sink).result()
            except ClientError as error:
                if error_code(error) in MISSING:
                    raise self._missing(key) from None
                raise
        return destination

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """See :meth:`storage.artifacts.ArtifactStore.list`."""
        with self._failures(f"listing {prefix or 'everything'}"):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._place.bucket, Prefix=self._base + prefix):
                for item in page.get("Contents", []):
                    key = item["Key"][len(self._base) :]
                    if not key.startswith(f"{RESERVED}/"):
                        yield Entry(key, item["Size"])

    def delete(self, key: str) -> None:
        """See :meth:`storage.artifacts.ArtifactStore.delete`."""
        name = self._name(key)
        with self._failures(f"deleting {key}"):
            self._client.delete_object(Bucket=self._place.bucket, Key=name)

    def size(self, key: str) -> int | None:
        """See :meth:`storage.artifacts.ArtifactStore.size`."""
        name = self._name(key)
        with self._failures(f"reading {key}"):
            try:
                answer = self._client.head_object(Bucket=self._place.bucket, Key=name)
                return answer["ContentLength"]
            except ClientError as error:
                if error_code(error) in MISSING:
                    return None
                raise

    def exists(self, key: str) -> bool:
        """See :meth:`storage.artifacts.ArtifactStore.exists`."""
        return self.size(key) is not None

    def local_path(self, key: str) -> None:
        """None: an object has no file here."""
        check_key(key)

    def check_writable(self) -> None:
        """See :meth:`storage.artifacts.ArtifactStore.check_writable`."""
        probe = f"{self._base}{RESERVED}/{uuid.uuid4().hex}"
        with self._failures("writing a probe"):
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

    def _read(self, name: str, start: int, stop: int | None) -> bytes:
        """Bytes of an object, going on where a connection broke."""
        data = bytearray()
        request: GetObjectRequestTypeDef = {"Bucket": self._place.bucket, "Key": name}
        for attempt in range(self._options.attempts):
            try:
                if (first := start + len(data)) or stop is not None:
                    request["Range"] = f"bytes={first}-{'' if stop is None else stop - 1}"
                answer = self._client.get_object(**request)
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

    def _connect(self) -> tuple[S3Client, TransferManager]:
        with self._lock:
            if self._connected is None:
                client = make_client(self._place, self._options)
                self._connected = client, _transfers(client, self._options)
            return self._connected

    def _failures(self, action: str) -> AbstractContextManager[None]:
        return failures(self._place, self._client.meta.endpoint_url, action)


class _Sink:
    """Where a download goes: without seek, so that its parts arrive in order."""

    def __init__(self, file: BinaryIO, observe: Observer | None):
        self._file = file
        self._observe = observe

    def write(self, data: bytes) -> int:
        if self._observe is not None:
            self._observe(data)
        return self._file.write(data)


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
