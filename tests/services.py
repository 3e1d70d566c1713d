"""Fixtures over the real servers of :mod:`tests.servers`; one of each serves a whole test run."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn, TypeVar

import pytest

from tests import servers
from tests.servers import BUCKET, AbsentError, PostgresServer, S3Server

Server = TypeVar("Server")


@contextmanager
def _started(starting: AbstractContextManager[Server]) -> Iterator[Server]:
    try:
        server = starting.__enter__()
    except (AbsentError, ImportError) as error:
        _do_without(str(error))
    try:
        yield server
    finally:
        starting.__exit__(None, None, None)


def _do_without(reason: str) -> NoReturn:
    """Skip tests that need a server, or fail where services are required."""
    if os.environ.get("TINTRAY_TEST_SERVICES") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """OpenStack Swift with its S3 interface, and one bucket."""
    with _started(servers.swift()) as server:
        yield server


@pytest.fixture
def s3_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store on the server, with the AWS environment that leads there."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/some prefix"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """PostgreSQL with passwords."""
    with _started(servers.postgres()) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database."""
    with postgres_server.database() as url:
        yield url
