"""The HTTP face: FastAPI's routes, one JSON sentence for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from secrets import token_urlsafe
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from tintray.errors import (
    BusyError,
    InputError,
    NotFoundError,
    StateConflictError,
    StorageError,
    TintrayError,
)
from tintray.jobs.serving import bodies, describing
from tintray.jobs.serving.guarding import FAILED, Guard, TooLargeError
from tintray.jobs.serving.metrics import Metrics
from tintray.jobs.serving.observing import Sample
from tintray.jobs.serving.options import ServeOptions
from tintray.jobs.serving.replica import Example
from tintray.jobs.serving.versions import Versions

_CODES: list[tuple[type[TintrayError], int]] = [
    (NotFoundError, 404),
    (InputError, 400),
    (BusyError, 429),
    (StateConflictError, 409),
    (StorageError, 503),
    (TintrayError, 503),
]
_RETRY = {429: "1", 503: "2"}
"""Seconds after which it is worth while to ask again."""
_MOST_PART = 2**20  # characters of a field of a form that is no file


def build_app(
    versions: Versions, options: ServeOptions, token: str | None, metrics: Metrics
) -> Any:
    """The ASGI application that serves a merge."""
    app = FastAPI(
        title="tintray",
        description=describing.ABOUT,
        docs_url=None,  # its page would load scripts from another server
        redoc_url=None,
    )
    _handle_errors(app)
    sample = Sample(options.observe)
    _add_predictions(app, versions, options, metrics, sample)
    _add_versions(app, versions, metrics, sample)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        nonce = token_urlsafe(16)
        text = (files("tintray.jobs.serving") / "page.html").read_text(encoding="utf-8")
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "connect-src 'self'; img-src data:; form-action 'none'; base-uri 'none'; "
            "frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(text.replace("NONCE", nonce), headers=headers)

    guard = Guard(app, token, options.max_body, metrics)

    @app.exception_handler(TooLargeError)
    async def too_large(_: Request, __: TooLargeError) -> JSONResponse:
        return _sentence(*guard.too_large())

    return guard


def _sentence(code: int, sentence: str) -> JSONResponse:
    headers = {"Retry-After": _RETRY[code]} if code in _RETRY else None
    return JSONResponse({"error": sentence}, code, headers)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(TintrayError)
    async def ours(_: Request, error: TintrayError) -> JSONResponse:
        code = next(code for kind, code in _CODES if isinstance(error, kind))
        return _sentence(code, str(error))

    @app.exception_handler(Exception)
    async def others(_: Request, __: Exception) -> JSONResponse:
        """Whatever it is, its words are for the log alone; it is raised again after this."""
        return _sentence(500, FAILED)

    @app.exception_handler(HTTPException)
    async def starlettes(_: Request, error: HTTPException) -> JSONResponse:
        said = {404: "there is no such path; see /openapi.json", 405: "expected another method"}
        return _sentence(error.status_code, said.get(error.status_code, str(error.detail)))


def _add_predictions(
    app: FastAPI, versions: Versions, options: ServeOptions, metrics: Metrics, sample: Sample
) -> None:
    async def answered(examples: Sequence[Example]) -> JSONResponse:
        with versions.chosen([task for task, _ in examples]) as live:
            for task, _ in examples:
                live.check(task)
            found = await live.batcher.predict(examples)
            for number, one in enumerate(found):
                if isinstance(one, TintrayError):
                    raise type(one)(f"inputs[{number}]: {one}")
                metrics.answered(one.task, one.version)
                sample.note(one, lambda: {version.ref for version in versions.live})
        answers = [one.to_json() for one in found if not isinstance(one, TintrayError)]
        return JSONResponse({"version": live.ref, "answers": answers})

    async def asked(request: Request, task: str | None) -> list[Example]:
        sort = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if sort == "application/json":
            return bodies.from_json(await request.body(), task, options)
        if sort != "multipart/form-data":
            raise HTTPException(
                415, f"expected application/json or multipart/form-data, found {sort!r:.60}"
            )
        most = options.max_examples + 1
        async with request.form(
            max_files=most, max_fields=2 * most, max_part_size=_MOST_PART
        ) as form:
            fields = [
                (name, value if isinstance(value, str) else await value.read())
                for name, value in form.multi_items()
            ]
        return bodies.from_form(fields, task, options)

    @app.post("/v1/tasks/{task}:predict", openapi_extra=describing.ONE_TASK)
    async def predict_task(task: str, request: Request) -> JSONResponse:
        """Answer inputs of one task."""
        return await answered(await asked(request, task))

    @app.post("/v1/predict", openapi_extra=describing.MIXED)
    async def predict(request: Request) -> JSONResponse:
        """Answer inputs of several tasks, in one batch."""
        return await answered(await asked(request, None))


def _add_versions(app: FastAPI, versions: Versions, metrics: Metrics, sample: Sample) -> None:
    @app.get("/v1/tasks")
    async def tasks() -> dict[str, Any]:
        """What is served: each task with its kind, labels and metric."""
        return versions.stable.described

    @app.get("/v1/tasks/{task}/observed")
    async def observed(task: str) -> dict[str, Any]:
        """How sure the newest answers of a task were, and of what: see ``tintray monitor``."""
        versions.stable.check(task)
        return sample.of(task, versions.stable.ref)

    @app.get("/v1/versions")
    async def status() -> dict[str, Any]:
        """The versions that answer, and each task's metric in them."""
        return await versions.status()

    @app.post("/v1/versions:promote")
    async def promote(request: Request) -> dict[str, str]:
        """Let the version that is being tried answer everything."""
        _check_json(request)
        return {"promoted": await versions.promote()}

    @app.post("/v1/versions:abort")
    async def abort(request: Request) -> dict[str, str]:
        """Let the version that is being tried go."""
        _check_json(request)
        return {"aborted": await versions.abort()}

    @app.get("/healthz")
    async def healthy() -> dict[str, bool]:
        """Whether this process answers."""
        return {"alive": True}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        """Whether a version is warm."""
        if not versions.ready:
            return _sentence(503, "no version is warm yet")
        return JSONResponse({"ready": True})

    @app.get("/metrics", response_class=Response)
    async def measured() -> Response:
        """For Prometheus."""
        text = metrics.text(await versions.status())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _check_json(request: Request) -> None:
    """Refuse what a form of another site's page could send."""
    if request.headers.get("content-type") != "application/json":
        raise HTTPException(415, "expected the header Content-Type: application/json")
