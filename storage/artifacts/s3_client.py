"""A boto3 client with deliberate timeouts and retries, and sentences for what S3 servers answer."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError, S3ValidationError
from urllib3.exceptions import HTTPError

from tintray.errors import AwayError, RefusedError, StorageError
from tintray.storage.artifacts.deadlines import OverdueError, refuse_overdue
from tintray.storage.artifacts.urls import S3Url
from tintray.storage.secrets import redact, shown_url

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MISSING = {"NoSuchKey", "404", "NotFound"}
_SILENT = (
    *(BotoCoreError, Boto3Error, RetriesExceededError, S3DownloadFailedError, S3ValidationError),
    *(HTTPError, OverdueError),  # HTTPError: a body that breaks off while it is read
)
_REFUSALS = {
    "NoSuchBucket": "cannot be used: there is no bucket '{bucket}'; create it, or correct the "
    "store's URL or AWS_ENDPOINT_URL",
    "InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken InvalidToken InvalidSecurity "
    "AuthorizationQueryParametersError": "refused the credentials ({code}); check "
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_PROFILE",
    "AccessDenied 403 Forbidden AllAccessDisabled AccountProblem": "refused {action} ({code}); "
    "check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) and their "
    "rights on bucket '{bucket}'",
    "QuotaExceeded InsufficientStorage 507 XMinioStorageFull EntityTooLarge": "is full: {action} "
    "was refused ({code}); free some space or name another",
    "RequestTimeTooSkewed": "has another time than this machine ({code}); set its clock right",
    "PermanentRedirect AuthorizationHeaderMalformed 301 IllegalLocationConstraintException": "is "
    "in another region ({code}); correct AWS_REGION",
}
"""What a server's refusals mean and what to do, by their codes."""

_PASSING = {
    *("RequestTimeTooSkewed", "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"),
    *("QuotaExceeded", "InsufficientStorage", "XMinioStorageFull"),
}
"""Refusals that pass: a clock that is set right, bytes altered on the way, a disk with room."""

_ANSWERS = {
    *MISSING, "NoSuchUpload", "409", "ConditionalRequestConflict", "412", "PreconditionFailed",
    "416", "InvalidRange",
}  # fmt: skip
"""Codes that answer a request. Any other may be of a request, or an answer, altered on the way.

What names the object is signed, so a request for another one is refused with 403, not with 404.
"""

_BREAKDOWNS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    (
        (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError),
        "needs credentials and found none; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_PROFILE",
    ),
    ((SSLError,), "has no certificate that can be verified; set AWS_CA_BUNDLE"),
    (
        (EndpointConnectionError,),
        "cannot be reached; check AWS_ENDPOINT_URL and that the server runs",
    ),
    (
        (OverdueError,),
        "is too slow: {action} was given up after {took:.0f} s; check the network and the server's "
        "load",
    ),
    (
        (Exception,),
        "did not answer in time: {action} was tried several times ({error}); check the network and "
        "the server's load",
    ),
)
"""What it means that no answer came, or none that could be read; the first that holds."""


@dataclass(frozen=True)
class S3Options:
    """How to speak to the server. Times in seconds, sizes in bytes.

    A request that stays silent is given up after ``read_timeout`` and tried again, ``attempts``
    times in all with growing pauses: a server that answers nothing fails within ``attempts *
    (connect_timeout + read_timeout)`` plus some 15 s of pauses. One that answers byte by byte is
    given up after ``deadline`` plus the time of the content.
    """

    connect_timeout: float = 5.0
    read_timeout: float = 20.0
    attempts: int = 5
    deadline: float = 150.0  # of a whole operation, beside the time that its content takes ...
    slowest: float = 256 << 10  # ... at so many bytes a second
    part_size: int = 8 << 20  # larger artifacts travel in parts of this size, in parallel
    threads: int = 8
    parts_in_memory: int = 10
    clock: Callable[[], float] = time.monotonic  # of the deadline


def make_client(place: S3Url, options: S3Options) -> S3Client:
    """A client whose endpoint, region and credentials come from the AWS environment and profile."""
    config = Config(
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
        retries={"mode": "standard", "total_max_attempts": options.attempts},
        max_pool_connections=2 * options.threads + 4,
        tcp_keepalive=True,
        user_agent_extra="tintray",
    )
    try:
        client = boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        said = f"{redact(str(error))}; correct AWS_ENDPOINT_URL or the AWS profile"
        if isinstance(error, ProfileNotFound):
            profile = os.environ.get("AWS_PROFILE", "")
            said = f"the AWS profile '{profile}' does not exist; correct AWS_PROFILE"
        raise StorageError(f"the artifact store {place} cannot be used: {said}") from error
    client.meta.events.register("before-send.s3", refuse_overdue)
    client.meta.events.register("before-parse.s3", _refuse_broken)
    again = cast("Callable[..., None]", partial(_ask_again, client, options.attempts))
    client.meta.events.register("needs-retry.s3", again)  # its stubs know of no answers
    return client


def _ask_again(
    client: S3Client,
    most: int,
    /,
    response: tuple[Any, dict[str, Any]] | None,
    attempts: int,
    **_: object,
) -> float | None:
    """Seconds after which a request that was refused is sent again; None if it is not.

    One byte altered on the way is enough for a refusal. botocore calls this after each answer.
    """
    if response is None or attempts >= most or not 300 <= response[0].status_code < 500:
        return None
    if str(response[1].get("Error", {}).get("Code", response[0].status_code)) in _ANSWERS:
        return None
    client.close()  # its connections: what is left of the request may spoil the next
    return random.uniform(0, 0.05 * 2**attempts)


def _refuse_broken(response_dict: dict[str, Any], operation_model: Any, **_: object) -> None:
    """Have an answer that broke off in its head, or without its body, asked for again.

    botocore takes it for a whole one: a listing would be empty, without a word. So it does with
    one whose status was altered to that of an empty answer.
    """
    status, usual = response_dict["status_code"], operation_model.http.get("responseCode", 200)
    if status not in (200, 206):
        if status < 300 and status != usual:
            response_dict.update(status_code=500, body=b"")
        return
    headers, body = response_dict["headers"], response_dict["body"]
    if (length := headers.get("content-length")) is None:
        closes = "close" in headers.get("connection", "").lower()
        whole = closes or "transfer-encoding" in headers
    else:
        bare = operation_model.http["method"] == "HEAD" or not isinstance(body, bytes)
        whole = bare or len(body) == int(length)
    if not whole:
        response_dict.update(status_code=500, body=b"")  # botocore's own sign to try again


@contextmanager
def failures(place: S3Url, endpoint: str, action: str) -> Iterator[None]:
    """Turn what boto3 raises while ``action`` into one sentence naming the store."""
    began = time.monotonic()
    try:
        yield
    except (ClientError, *_SILENT) as error:
        if isinstance(error, ClientError):
            said = _refusal(action, place.bucket, error)
        else:
            meaning = next(text for kinds, text in _BREAKDOWNS if isinstance(error, kinds))
            reason = f"{type(error).__name__}: {redact(str(error))}"
            took = time.monotonic() - began
            said = meaning.format(action=action, error=reason, took=took)
        where = f"the artifact store {place} at {shown_url(endpoint)}"
        raise _kind(error)(f"{where} {said}") from error


def _kind(error: Exception) -> type[StorageError]:
    """Whether a server did not answer, cannot at the moment, or refused a request."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        away = status == 429 or 500 <= status <= 507 or error_code(error) in _PASSING
        return AwayError if away else RefusedError
    silent = not isinstance(error, (*_BREAKDOWNS[0][0], *_BREAKDOWNS[1][0]))
    return AwayError if silent else StorageError


def error_code(error: ClientError) -> str:
    """The code that the server named, or the HTTP status where it named none."""
    code = error.response.get("Error", {}).get("Code")
    return str(code or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))


def _refusal(action: str, bucket: str, error: ClientError) -> str:
    """The server answered, and the answer was no."""
    code = error_code(error)
    for codes, meaning in _REFUSALS.items():
        if code in codes.split():
            return meaning.format(action=action, code=code, bucket=bucket)
    message = redact(str(error.response.get("Error", {}).get("Message", ""))).rstrip(". ")
    return f"failed: {action}: {code} {message}".rstrip() + "; see the server's log"
