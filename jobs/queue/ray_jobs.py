"""Ray's Jobs API over HTTP: hand a driver over to a cluster, see how it fares, stop it.

Plain HTTP, since importing Ray takes longer than a submission may. The endpoints are those that
Ray's own client uses (Ray Jobs REST API, version 4).
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from tintray.errors import ClusterError, InputError, SpecError
from tintray.jobs.config.settings import ADDRESS_VARIABLE, setting
from tintray.storage.secrets import learn, redact, shown_url

DEFAULT_PORT = 8265
TIMEOUT = 20.0  # seconds that a cluster may take to answer
SUBMIT_TIMEOUT = 45.0  # and to accept a driver: a head that has just started takes its time
STOP_SECONDS = 30  # between SIGTERM and SIGKILL for a driver: it writes a checkpoint
_LOCAL = ("auto", "local")
_ANSWER_BYTES = 256 << 20  # of a driver's whole log, the longest answer that there is
_TOKEN = re.compile(r"[!-~]{1,4096}")


@dataclass(frozen=True)
class RayJob:
    """What a cluster says of a driver that it was given."""

    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    message: str

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


def jobs_address(written: str) -> str:
    """The URL of a cluster's Jobs API, ``http://host:8265``, from what a user wrote.

    Raises ``SpecError``: it is the address of something else.
    """
    text = written.strip()
    if text in _LOCAL:
        return f"http://127.0.0.1:{DEFAULT_PORT}"
    parts = urlsplit("")
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port, name = parts.port, parts.hostname or ""
    except ValueError:  # a port that is no number, brackets that are no IPv6 address
        port, name = 0, ""
    if parts.scheme not in ("http", "https") or not name or port == 0:
        raise SpecError(
            f"address: expected that of a cluster's dashboard, such as http://head:{DEFAULT_PORT}, "
            f"found {shown_url(written)!r}"
        )
    if parts.username is not None:
        raise SpecError(
            "address: expected no user and password in it; a cluster with tokens reads "
            "RAY_AUTH_TOKEN_PATH"
        )
    host = f"[{name}]" if ":" in name else name
    default = DEFAULT_PORT if "://" not in text or parts.scheme == "http" else 443
    return f"{parts.scheme}://{host}:{port or default}{parts.path.rstrip('/')}"


class RayJobs:
    """The Jobs API of one cluster.

    The token of this machine goes to no address but the configured one, or one that the user has
    ``confirmed``: a job file or a catalog of somebody else may name any. No redirect is followed.
    ``patience`` are the seconds that it may take to answer.

    Every method raises :class:`ClusterError` if the cluster does not answer.
    """

    def __init__(self, address: str, *, confirmed: bool = False, patience: float = TIMEOUT) -> None:
        self.address = jobs_address(address)
        self._patience = patience
        self.confirmed = confirmed or self.address in _configured()
        # A proxy of the environment is for the web; clusters are near. Ray's client does the same.
        self._opener = build_opener(ProxyHandler({}), _NoRedirect)

    def check_versions(self) -> None:
        """Refuse a cluster on which a driver of this Ray and Python could not work.

        Raises ``InputError``: it does not answer, or has another version of Ray or Python.
        """
        try:
            metadata = self._ask("GET", "/api/v0/cluster_metadata").get("data")
        except ClusterError as error:
            raise InputError(str(error)) from error
        metadata = metadata if isinstance(metadata, dict) else {}
        for name, mine, parts, advice in (
            ("Ray", version("ray"), None, "install the same version on both"),
            ("Python", platform.python_version(), 2, "use the same minor version on both"),
        ):
            key = name.lower()
            found = str(metadata.get(f"{key}Version") or metadata.get(f"{key}_version") or mine)
            if found.split(".")[:parts] != mine.split(".")[:parts]:
                raise InputError(
                    f"the cluster at {self.address} runs {name} {found}, and this is {name} "
                    f"{mine}; {advice}"
                )

    def is_open(self) -> bool:
        """Whether it takes jobs from whoever reaches it: it answers without a token."""
        try:
            self._ask("GET", "/api/v0/cluster_metadata", token=False)
        except ClusterError:
            return False
        return True

    def submit(self, entrypoint: str, submission_id: str, environment: Mapping[str, str]) -> None:
        """Start a driver; returns as soon as the cluster has accepted it."""
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **environment}
        driver = {"entrypoint": entrypoint, "submission_id": submission_id}
        body = {**driver, "runtime_env": {"env_vars": variables}}
        self._ask("POST", "/api/jobs/", body, timeout=SUBMIT_TIMEOUT)

    def find(self, submission_id: str) -> RayJob | None:
        """How a driver fares; None if the cluster does not know it."""
        found = self._ask("GET", f"/api/jobs/{quote(submission_id)}", missing=True)
        if found is None:
            return None
        return RayJob(str(found.get("status")), str(found.get("message") or ""))

    def stop(self, submission_id: str) -> None:
        """Send a driver SIGTERM; harmless if it is over or unknown."""
        self._ask("POST", f"/api/jobs/{quote(submission_id)}/stop", {}, missing=True)

    def logs(self, submission_id: str) -> str | None:
        """All that a driver has written so far; None if the cluster does not know it."""
        found = self._ask("GET", f"/api/jobs/{quote(submission_id)}/logs", missing=True)
        return None if found is None else str(found.get("logs") or "")

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        missing: bool = False,
        timeout: float | None = None,
        token: bool = True,
    ) -> Any:
        """The JSON object that a cluster answers; with ``missing``, None for what it lacks."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if token and self.confirmed:
            headers |= _authorisation()
        request = Request(f"{self.address}{path}", data, headers, method=method)
        try:
            with self._opener.open(request, timeout=timeout or self._patience) as answer:
                return _object(answer.read(_ANSWER_BYTES + 1))
        except HTTPError as error:
            if missing and error.code == 404:
                return None
            raise ClusterError(self._refusal(error)) from error
        except (URLError, HTTPException, OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "reason", error)
            raise ClusterError(
                f"no Ray cluster answers at {self.address} ({_words(reason)}); check the address, "
                "and that `ray start --head` runs there with its dashboard"
            ) from error

    def _refusal(self, error: HTTPError) -> str:
        if 300 <= error.code < 400:
            return (
                f"the cluster at {self.address} answered {error.code}: it redirects elsewhere, "
                "which is not followed; give the address of its dashboard itself"
            )
        if error.code in (401, 403) and not self.confirmed:
            return (
                f"the cluster at {self.address} wants a token ({error.code}), and a token goes "
                f"only to the address that you chose; if it is yours, give --address, or set "
                f"{ADDRESS_VARIABLE}, to {self.address}"
            )
        if error.code in (401, 403):
            return (
                f"the cluster at {self.address} refused the token ({error.code}); set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that has the cluster's"
            )
        lines = error.read(9000).decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip(" .")]
        told = [line for line in said if ": " in line] or said or [error.reason]
        detail = redact(told[-1]).rstrip(".")
        return f"the cluster at {self.address} answered {error.code}: {detail}; see its dashboard"


def is_reached_by_all(address: str) -> bool:
    """Whether a cluster beyond this machine takes jobs without a token."""
    host = urlsplit(address).hostname or ""
    here = host == "localhost" or host.startswith("127.") or host == "::1"
    return not here and RayJobs(address).is_open()


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirect: it would take the token, or the job, to an address nobody chose."""

    def redirect_request(self, *_: object) -> None:
        """None: the redirect itself is then the answer, and an error."""


def _configured() -> set[str]:
    """The addresses that the user of this machine has chosen, outside of any job file."""
    found = setting("address")
    chosen = [found.value if found else "", os.environ.get("RAY_API_SERVER_ADDRESS", "")]
    return {jobs_address(address) for address in chosen if address}


def token_mode() -> bool:
    """Whether Ray's own environment asks for a token with every request."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _authorisation() -> dict[str, str]:
    """The header with the token, where Ray's own environment asks for one."""
    if not token_mode():
        return {}
    token, where = os.environ.get("RAY_AUTH_TOKEN", "").strip(), "RAY_AUTH_TOKEN"
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        try:
            token, where = path.read_text(errors="replace").strip(), str(path)
        except OSError as error:
            raise SpecError(
                f"RAY_AUTH_MODE is token, and the token cannot be read from {path} "
                f"({error.strerror}); set RAY_AUTH_TOKEN_PATH"
            ) from error
    if not _TOKEN.fullmatch(token):  # it would be quoted by whoever refuses it as a header
        raise SpecError(
            f"{where}: expected a token, one word of ASCII characters, found something else (it is "
            "not shown); `ray get-auth-token --generate` makes one"
        )
    learn(token)
    return {"Authorization": f"Bearer {token}"}


def _object(data: bytes) -> dict[str, Any]:
    if len(data) > _ANSWER_BYTES:
        raise ValueError(f"an answer above {_ANSWER_BYTES >> 20} MiB")
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("an answer that is no JSON object")
    return found


def _words(reason: object) -> str:
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return redact(" ".join(text.split()))
