"""A comparison as a picture; needs the optional extra ``plots``."""

from __future__ import annotations

from pathlib import Path

from tintray.errors import InputError, StorageError
from tintray.jobs.results import CompareTable
from tintray.tasks.metrics import find_metric

_KINDS = (".png", ".svg", ".pdf")
_INK, _MERGE, _RIVAL, _TASK = "#333333", "#1b7f5c", "#9db4c8", "#5b6b7a"


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be drawn, before anything is computed."""
    if path.suffix.lower() not in _KINDS:
        raise InputError(f"--plot: expected a file ending in {', '.join(_KINDS)}, found '{path}'")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--plot: the folder {path.absolute().parent} does not exist")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("--plot needs matplotlib; pip install 'tintray[plots]'") from error


def plot_comparison(table: CompareTable, path: Path) -> None:
    """Draw what each method keeps of the experts: a bar for all tasks, a dot for each one."""
    from matplotlib.figure import Figure

    experts = {row.task: row.value for row in table.rows if row.method == "experts"}
    order = sorted(
        (name for name in table.normalised if name != "experts"),
        key=lambda name: table.normalised[name],
    )
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    for height, name in enumerate(order):
        colour = _MERGE if name == "merge" else _RIVAL
        axes.barh(height, 100 * table.normalised[name], color=colour, height=0.7, zorder=1)
        kept = [
            find_metric(row.metric).normalised(row.value, experts[row.task])
            for row in table.rows
            if row.method == name and row.task in experts
        ]
        shares = [100 * share for share in kept if share is not None]
        axes.plot(shares, [height] * len(shares), ".", color=_TASK, markersize=4, zorder=2)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.axvline(100, color=_INK, linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xlim(0, None)
    axes.set_xlabel("% of the expert's own figure: mean over tasks (bar), each task (dot)")
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
