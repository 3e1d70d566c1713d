"""``tintray ui``: a page over the catalog that changes nothing, for a browser."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from contextlib import closing
from typing import Any

from tintray.errors import InputError, NotFoundError, TintrayError, check_installed
from tintray.jobs.queue import views
from tintray.jobs.runs.history import history
from tintray.jobs.runs.merge_list import list_merges
from tintray.jobs.serving.guarding import FAILED, Guard
from tintray.jobs.serving.listening import answer, listen, shown
from tintray.jobs.serving.options import ServeOptions, serve_token
from tintray.jobs.watching import ui_pages
from tintray.jobs.watching.page import POLICY, page
from tintray.jobs.watching.report import learning_of, report
from tintray.storage.secrets import redact

TOKEN_VARIABLE = "TINTRAY_UI_TOKEN"
_JOBS = 50  # of those that are over
_PATIENCE = 5.0  # seconds that open requests have when it is told to stop
_HEADERS = {
    "Content-Security-Policy": f"{POLICY}; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class PageGuard(Guard):
    """The same for a browser, which asks its user: the token is the password, under any name."""

    open_paths, variable = frozenset[str](), TOKEN_VARIABLE
    challenge = 'Basic realm="tintray", charset="UTF-8"'

    def given(self, scheme: bytes, value: bytes) -> bytes:
        """The password of what a browser sends, or a bearer token."""
        if scheme != b"basic":
            return super().given(scheme, value)
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""

    def expected(self) -> str:
        """What is said to whoever gave no token, or another."""
        return f"expected any name, and the token in {self.variable} as the password"

    def refusal(self, sentence: str) -> tuple[bytes, bytes]:
        """A page, as all else is."""
        return sentence.encode(), b"text/plain; charset=utf-8"


def serve(
    host: str, port: int, *, store: str, catalog: str, say: Callable[[str], None] = print
) -> None:
    """Answer until SIGINT or SIGTERM comes; ``say`` is told where.

    Raises InputError: the catalog cannot be read, host or port cannot be used, or there is no
    token where others than this machine can reach it.
    """
    check_installed("the page", ("fastapi", "uvicorn"), "serve")
    token = serve_token(ServeOptions(host=host), variable=TOKEN_VARIABLE)
    views.list_jobs(catalog=catalog, limit=1)
    with closing(listen(host, port)) as listening:
        say(f"the catalog {redact(catalog)} at {shown(listening)}")
        asyncio.run(answer(build_app(store, catalog, token), listening, _PATIENCE))


def build_app(store: str, catalog: str, token: str | None) -> Any:
    """The ASGI application: a handful of pages, each read from catalog and store as it is asked."""
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse
    from starlette.exceptions import HTTPException

    app = FastAPI(title="tintray", openapi_url=None, docs_url=None, redoc_url=None)
    where = f"Catalog {redact(catalog)}"

    def html(text: str, code: int = 200) -> HTMLResponse:
        return HTMLResponse(text, code, _HEADERS)

    @app.get("/")
    def overview() -> HTMLResponse:
        jobs = views.list_jobs(catalog=catalog, limit=_JOBS)
        merges = list_merges(store=store, catalog=catalog)
        return html(ui_pages.overview(jobs, merges, where))

    @app.get("/jobs/{job}")
    def job_(job: str) -> HTMLResponse:
        with views.opened(catalog) as (known, _):
            found = views.status_of(known, views.resolve(known, job))
            rounds = known.jobs.rounds(found.id)
        learning = learning_of(rounds, [task.name for task in found.tasks]) if rounds else None
        return html(ui_pages.job_page(found, learning))

    @app.get("/merges/{name}")
    def merge(name: str) -> HTMLResponse:
        return html(ui_pages.merge_page(name, history(name, catalog=catalog)))

    @app.get("/merges/{name}/{version}")
    def version(name: str, version: str) -> HTMLResponse:
        known = {of.ref for of in history(name, catalog=catalog)}  # no path, no other store
        if f"{name}/{version}" not in known:
            raise NotFoundError(f"{name} has no version {version}")
        found = report(f"{name}/{version}", store=store, catalog=catalog)
        places = ((ui_pages.merge_path(name), name), ("#lineage", "lineage"))
        conflicts = (("#conflicts", "conflicts"),) if found.conflicts is not None else ()
        job = ((ui_pages.job_path(found.merge.job_id), "job"),)
        return html(page(found, ui_pages.navigation(*places, *conflicts, *job)))

    @app.exception_handler(TintrayError)
    def ours(_: Request, error: TintrayError) -> HTMLResponse:
        code = 400 if isinstance(error, InputError) else 503
        code = 404 if isinstance(error, NotFoundError) else code
        return html(ui_pages.sorry(code, redact(str(error))), code)

    @app.exception_handler(HTTPException)
    def starlettes(_: Request, error: HTTPException) -> HTMLResponse:
        said = {404: "There is no such page.", 405: "This page is only to be looked at."}
        return html(ui_pages.sorry(error.status_code, said.get(error.status_code, error.detail)),
                    error.status_code)  # fmt: skip

    @app.exception_handler(Exception)
    def others(_: Request, __: Exception) -> HTMLResponse:
        """Whatever it is, its words are for the log alone; it is raised again after this."""
        return html(ui_pages.sorry(500, FAILED), 500)

    return PageGuard(app, token, max_body=0)
