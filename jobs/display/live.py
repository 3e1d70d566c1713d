"""The live display of a job on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tintray.errors import printable
from tintray.jobs.display.progress import MAX_TASKS, Tracker
from tintray.jobs.events import Event, Notice, OnEvent, PhaseStarted

_WORST = 3  # tasks that are shown of many
_FRAMES_PER_SECOND = 4


@contextmanager
def live(console: Console) -> Iterator[OnEvent]:
    """A live display on ``console``; it stays on the screen only when the block raises."""
    tracker = Tracker()
    display = Live(
        get_renderable=lambda: frame(tracker),
        console=console,
        refresh_per_second=_FRAMES_PER_SECOND,
        transient=True,
    )

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseStarted) and tracker.phase:
            console.print(tracker.phase_line(), highlight=False, markup=False)
        if isinstance(event, Notice):
            console.print(f"note: {printable(event.text)}", highlight=False, markup=False)
        tracker.take(event)

    with display:
        try:
            yield on_event
        except BaseException:
            display.transient = False
            raise


def frame(tracker: Tracker) -> RenderableType:
    """What the live display shows now."""
    head = Text.assemble((tracker.phase or "starting", "bold"), "  ", tracker.detail)
    parts: list[RenderableType] = [head]
    if tracker.phase == "preparing" and (done := tracker.prepared):
        cached = ", from the store" if done.cached else ""
        parts.append(_bar(done.done, done.total, f"tasks   {done.task}{cached}"))
    if tracker.round:
        kept = f"{tracker.selected_fraction:.0%}{tracker.time_left('   ')}"
        words = f"rounds   loss {tracker.loss:.3f}   {tracker.on_held_back('   ')}kept {kept}"
        parts += [_bar(tracker.round.round, tracker.round.rounds, words), _agreement(tracker)]
    if tracker.phase == "evaluating" and tracker.evaluated:
        parts.append(Text(f"{tracker.evaluated} of {len(tracker.agreement) or '?'} tasks measured"))
    return Group(*parts)


def _bar(done: int, total: int, words: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(total, 1), completed=done, width=24)
    grid.add_row(bar, Text(f"{done}/{total}"), Text(words))
    return grid


def _agreement(tracker: Tracker) -> RenderableType:
    """Agreement with the expert: a bar for each task, or the worst ones of many."""
    grid = Table.grid(padding=(0, 1))
    few = len(tracker.agreement) <= MAX_TASKS
    rows = list(tracker.agreement.items()) if few else tracker.worst(_WORST)
    title = "agreement" if few else f"agreement, worst {len(rows)} of {len(tracker.agreement)}"
    mean = Text(f"{tracker.mean_agreement:.3f}")
    grid.add_row(Text(title, style="dim"), mean, Text("mean", style="dim"))
    for task, share in rows:
        bar = ProgressBar(total=1.0, completed=share, width=24)
        grid.add_row(Text(task, no_wrap=True, overflow="ellipsis"), Text(f"{share:.3f}"), bar)
    return grid
