"""Stores and catalogs for the tests, on real servers that end with the test run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.artifacts import ArtifactStore, open_store
from storage.catalog import Catalog

BUCKET = "tintray-tests"


@dataclass(frozen=True)
class S3Server:
    """A running S3-compatible server and the credentials that it takes."""

    endpoint: str
    key: str
    secret: str

    def environment(self) -> dict[str, str]:
        """The AWS variables that lead a client there, and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL and the credentials that it takes."""

    host: str
    port: int
    user: str
    password: str

    def url(self, database: str) -> str:
        """The catalog URL of one of its databases."""
        place = f"{self.user}:{self.password}@{self.host}:{self.port}"
        return f"postgresql+psycopg://{place}/{database}"


@contextmanager
def running(program: str) -> Iterator[dict[str, object]]:
    """Run one of the server programs next to this file; yields what it says when it is ready.

    Without the packages that it needs, tests are skipped, or fail where services are required.
    """
    # Not pytest's own folder: a PostgreSQL that may not run as root could not enter that.
    folder = Path(tempfile.mkdtemp(prefix="tintray-"))
    path = Path(__file__).with_name(program)
    server = subprocess.Popen(
        [sys.executable, str(path), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        ready = server.stdout.readline()
        if not ready:
            _, problem = server.communicate(timeout=10)
            reason = f"{program}: {problem.strip().splitlines()[-1:]}"
            if os.environ.get("TINTRAY_TEST_SERVICES") == "required":
                pytest.fail(reason)
            pytest.skip(reason)
        yield json.loads(ready)
    finally:
        server.communicate(timeout=30)  # closes its standard input, which ends it
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """OpenStack Swift with its S3 interface, and one bucket."""
    import boto3

    with running("swift_server.py") as ready:
        server = S3Server(str(ready["endpoint"]), str(ready["key"]), str(ready["secret"]))
        client = boto3.client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.key,
            aws_secret_access_key=server.secret,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
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
    with running("postgres_server.py") as ready:
        yield PostgresServer(
            str(ready["host"]), int(str(ready["port"])), str(ready["user"]), str(ready["password"])
        )


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database."""
    import psycopg

    name = f"t{uuid.uuid4().hex}"
    server = postgres_server
    options = {"host": server.host, "port": server.port, "user": server.user, "dbname": "postgres"}
    with psycopg.connect(**options, password=server.password, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        yield server.url(name)
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An empty store of each kind."""
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3_url"))
    return open_store(tmp_path / "store")


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        return url
    return f"sqlite:///{tmp_path}/catalog/catalog.db"


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[Catalog]:
    """An empty catalog of each kind."""
    with Catalog.open(catalog_url) as opened:
        yield opened
