"""Real servers on loopback, for tests and benchmarks: they end with whoever started them."""

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

BUCKET = "tintray-tests"


class AbsentError(Exception):
    """A server cannot be started here, with the reason."""


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
    def database(self) -> Iterator[str]:
        """The URL of an empty database."""
        import psycopg

        name = f"t{uuid.uuid4().hex}"
        options = {"host": self.host, "port": self.port, "user": self.user, "dbname": "postgres"}
        with psycopg.connect(**options, password=self.password, autocommit=True) as admin:
            admin.execute(f'CREATE DATABASE "{name}"')
            yield self.url(name)
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def swift() -> Iterator[S3Server]:
    """OpenStack Swift with its S3 interface, and one bucket."""
    import boto3

    with _running("swift_server.py") as ready:
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


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """PostgreSQL with passwords."""
    with _running("postgres_server.py") as ready:
        yield PostgresServer(
            str(ready["host"]), int(str(ready["port"])), str(ready["user"]), str(ready["password"])
        )


@contextmanager
def _running(program: str) -> Iterator[dict[str, object]]:
    """Run one of the server programs next to this file; yields what it says when it is ready."""
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
            raise AbsentError(f"{program}: {problem.strip().splitlines()[-1:]}")
        yield json.loads(ready)
    finally:
        server.communicate(timeout=30)  # closes its standard input, which ends it
        shutil.rmtree(folder, ignore_errors=True)
