"""The pages of ``tintray ui``: what the catalog knows, as HTML without script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from tintray.jobs.display.times import moment
from tintray.jobs.queue.views import JobLine, JobStatus
from tintray.jobs.runs.history import Version
from tintray.jobs.runs.merge_list import MergeListing
from tintray.jobs.watching import charts
from tintray.jobs.watching.markup import Markup, element, joined
from tintray.jobs.watching.page import document, facts
from tintray.jobs.watching.report import Learning
from tintray.jobs.watching.sections import learned, note, section, table
from tintray.tasks.metrics import percent

_SECONDS = 5  # between two looks at what is still moving
_STATES = {"succeeded": "✓ ", "failed": "✗ ", "cancelled": "− ", "lost": "? "}


def merge_path(name: str, version: str | None = None) -> str:
    """Where the page of a merge is, or of a version of it; a name may be anything."""
    return "/".join(("/merges", *(quote(part, safe="") for part in (name, version) if part)))


def job_path(job: str) -> str:
    """Where the page of a job is."""
    return f"/jobs/{quote(job, safe='')}"


def navigation(*places: tuple[str, str]) -> Markup:
    """The way back: from the overview down to here."""
    links = [element("a", title, href=path) for path, title in (("/", "tintray"), *places)]
    parts = [part for link in links for part in (link, " / ")]
    return element("nav", *parts[:-1], class_="note")


def overview(jobs: Sequence[JobLine], merges: Sequence[MergeListing], where: str) -> str:
    """Jobs, the newest first, and merges by their names."""
    newest: dict[str, list[MergeListing]] = {}
    for merge in merges:
        newest.setdefault(merge.name, []).append(merge)
    moving = [job for job in jobs if not job.over]
    parts = [
        element("header", element("h1", "tintray"), note(where)),
        facts([
            (str(len(moving)), "jobs at work or waiting", ""),
            (str(len(newest)), "merges", f"{len(merges)} versions"),
        ]),
        section("Jobs", _jobs(jobs), "jobs"),
        section("Merges", _merges(list(newest.values())), "merges"),
    ]  # fmt: skip
    return document("tintray", *parts, head=_again(bool(moving)))


def _again(moving: bool) -> list[Markup]:
    """The page asks for itself again, while something on it moves."""
    return [element("meta", http_equiv="refresh", content=str(_SECONDS))] if moving else []


def _jobs(jobs: Sequence[JobLine]) -> Markup:
    if not jobs:
        return note("There is no job yet.")
    rows = (
        element(
            *("li", element("span", _link(job_path(job.id), job.name), " ", _small(job))),
            charts.bar(_share(job)),
            element("span", _STATES.get(job.state, ""), job.state, class_="figure"),
        )
        for job in jobs
    )
    return element("ul", *rows, class_="rows jobs")


def _small(job: JobLine) -> Markup:
    rounds = f"round {job.round} of {job.rounds}; " if job.round and job.rounds else ""
    return element("small", f"{job.id}, {rounds}{_moment(job.created)}")


def _share(job: JobLine) -> float:
    if job.state == "succeeded":
        return 1.0
    return (job.round or 0) / job.rounds if job.rounds else 0.0


def _link(path: str, content: str) -> Markup:
    return element("a", content, href=path)


def _moment(written: str) -> str:
    return moment(written, "minutes")


def _merges(merges: Sequence[Sequence[MergeListing]]) -> Markup:
    if not merges:
        return note("There is no merge yet.")
    head = ["merge", "newest", "site", "made", "tasks", "of the experts"]
    rows = (
        [
            _link(merge_path(newest.name), newest.name),
            joined(
                _link(merge_path(newest.name, newest.version), newest.version),
                f" of {len(versions)}" if len(versions) > 1 else "",
            ),
            newest.site or "-",
            _moment(newest.created),
            str(newest.tasks or "-"),
            percent(newest.normalised_accuracy),
        ]
        for versions in merges
        for newest in versions[:1]
    )
    return table(head, rows, texts=4)


def job_page(job: JobStatus, learning: Learning | None) -> str:
    """One job: how far it is, its tasks, what happened to it."""
    reason = job.stopping or job.waits or job.reason
    done = job.round or (learning.rounds[-1] if learning else 0)
    parts = [
        navigation(),
        element("header", element("h1", f"{job.name}"), note(f"Job {job.id}: {reason}")),
        facts([
            (job.state, "state", f"since {_moment(job.updated)}"),
            (str(done), f"of {job.rounds} rounds" if job.rounds else "rounds", _kept_after(job)),
            ("-" if job.loss is None else f"{job.loss:.4g}", "loss, a mean over tasks", ""),
        ]),
        *([section("Merge", _link(merge_path(*job.merge.rsplit("/", 1)), job.merge))] if job.merge
          else []),
        section("Tasks", _tasks(job)),
        *([] if learning is None else [section("How it learns", learned(learning))]),
        section("What happened", _events(job)),
    ]  # fmt: skip
    return document(f"{job.name}: {job.state}", *parts, head=_again(not job.over))


def _kept_after(job: JobStatus) -> str:
    return f"kept after round {job.checkpoint}" if job.checkpoint else ""


def _tasks(job: JobStatus) -> Markup:
    head = ["task", "kind", "agreement on its batch", "held back", "pool kept"]
    rows = (
        [task.name, task.kind, percent(task.agreement), percent(task.held_back),
         percent(task.selected_fraction)]
        for task in job.tasks
    )  # fmt: skip
    return table(head, rows, texts=2) if job.tasks else note("None is known yet.")


def _events(job: JobStatus) -> Markup:
    items: Iterable[Markup] = (
        element(
            *("li", element("strong", event.after), " "),
            element("small", f"{_moment(event.at)}: {event.reason}"),
        )
        for event in job.events
    )
    return element("ol", *items, class_="versions")


def merge_page(name: str, versions: Sequence[Version]) -> str:
    """The tree that a merge is in, the newest version first."""
    head = ["version", "made from", "how", "tasks", "of the experts", "made"]
    rows = (
        [
            joined(_ref(version.ref), " (removed)" if version.removed else ""),
            "-" if version.parent is None else _ref(version.parent),
            " ".join([version.operation, *version.changed[:4]])
            + (f" and {len(version.changed) - 4} more" if len(version.changed) > 4 else ""),
            str(version.tasks),
            percent(version.normalised_accuracy),
            _moment(version.created),
        ]
        for version in reversed(versions)
    )
    parts = [
        navigation(),
        element("header", element("h1", name), note(f"{len(versions)} versions in its tree")),
        section("Versions", table(head, rows, texts=3)),
    ]
    return document(f"{name}: versions", *parts)


def _ref(ref: str) -> Markup:
    return _link(merge_path(*ref.rsplit("/", 1)), ref)


def sorry(code: int, sentence: str) -> str:
    """What is shown in the place of a page that there is not."""
    return document(f"{code}", navigation(), element("h1", str(code)), element("p", sentence))
