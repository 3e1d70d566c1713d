"""Write a report: measured first where it is asked for, as a page, as Markdown or as JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tintray.errors import InputError, StorageError
from tintray.jobs.config.settings import chosen
from tintray.jobs.engine.finding import load_merge, locate
from tintray.jobs.events import OnEvent, ignore
from tintray.jobs.watching import measuring
from tintray.jobs.watching.explained_page import explained_page
from tintray.jobs.watching.explaining import Explanation
from tintray.jobs.watching.markdown import markdown
from tintray.jobs.watching.page import page
from tintray.jobs.watching.report import Report, report

FORMS: Mapping[str, Callable[[Report], str]] = {
    "html": page,
    "md": markdown,
    "json": lambda found: json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n",
}


def write_report(
    merge: str,
    output: Path | None = None,
    *,
    form: str = "html",
    measure: bool = False,
    dry_run: bool = False,
    store: str | None = None,
    catalog: str | None = None,
    on_event: OnEvent | None = None,
) -> Path | str:
    """Write a merge's report to ``output``; its path, or its text where it has none.

    A page without an ``output`` is named after the merge, in the current folder. What lies there is
    replaced. With ``measure``, averaging, task arithmetic and conflicts are measured first. With
    ``dry_run`` nothing is measured or written, and the text is where it would go.

    Raises InputError where it cannot be written, before anything is measured.
    """
    if form not in FORMS:
        raise InputError(f"a report has one of the forms {', '.join(FORMS)}, found {form!r}")
    if output is not None:
        check_output(output)
    store, catalog = chosen(store, catalog)
    url = locate(merge, catalog)
    manifest = load_merge(url).manifest
    if output is None and form == "html":
        output = Path(f"{manifest.name}-v{manifest.version}.html")
        check_output(output)
    if dry_run:
        return "standard output" if output is None else str(output.absolute())
    if measure:
        measuring.everything(url, store, catalog, on_event or ignore)
    written = FORMS[form](report(url, store=store, catalog=catalog))
    if output is None:
        return written
    write_whole(output.absolute(), written)
    return output.absolute()


def write_explanation(found: Explanation, output: Path | None, form: str) -> Path | str:
    """Write what a tint learned as ``"html"`` or ``"json"``; the path, or the text of JSON.

    A page without an ``output`` is named after merge and task, in the current folder.
    """
    if form == "json":
        written = json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n"
        if output is None:
            return written
    else:
        written = explained_page(found)
    path = _page_of(found.of, found.task, output)
    write_whole(path, written)
    return path


def explanation_file(
    merge: str, task: str, output: Path | None, form: str, *, catalog: str | None = None
) -> Path | None:
    """Where ``write_explanation`` would write; nothing is computed.

    Raises NotFoundError for a task that the merge has not, InputError as ``check_output``.
    """
    opened = load_merge(locate(merge, chosen(None, catalog)[1]))
    opened.task(task)
    if output is None and form != "html":
        return None
    path = _page_of(opened.manifest.ref, task, output)
    check_output(path)
    return path


def _page_of(merge: str, task: str, output: Path | None) -> Path:
    return (output or Path(f"{merge.replace('/', '-')}-{task}.html")).absolute()


def check_output(path: Path) -> None:
    """Raise InputError for a file that cannot be written where it is to lie."""
    if path.is_dir():
        raise InputError(f"-o: expected a file, found the folder {path}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"-o: the folder {folder} does not exist; make it first")


def write_whole(path: Path, written: str) -> None:
    """Write a file whole, or leave what was there; raises as ``check_output``, and StorageError."""
    check_output(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.absolute().parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(written)
            os.umask(mask := os.umask(0))
            Path(name).chmod(0o666 & ~mask)  # mkstemp makes it for this user alone
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
