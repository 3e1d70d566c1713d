"""What looking at a merge tells, as people read it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from tintray.jobs.cli.tables import print_facts, table_of, title
from tintray.jobs.display.terminal import escaped, open_console
from tintray.jobs.display.times import moment
from tintray.jobs.watching.explained_page import WORDS, moved, two, verdict
from tintray.tasks.metrics import percent

if TYPE_CHECKING:
    from tintray.jobs.watching.conflicts import Conflicts, Split
    from tintray.jobs.watching.explaining import Explanation
    from tintray.jobs.watching.monitoring import Drift
    from tintray.references.estimates import Estimate

_PAIRS = 8  # that cost each other most


def print_conflicts(found: Conflicts, console: Console) -> None:
    """A line for each task, for each layer, and for the pairs that fight most; then the advice."""
    names, count = found.tasks, len(found.tasks)
    console.print(title(found.of, f"{count} tasks, compared at {found.state}"))
    group_of = {name: n for n, group in enumerate(found.groups, 1) for name in group}
    corrected = any(abs(share) > 1e-3 for share in found.correction)
    rows = []
    for k, name in enumerate(names):
        others = [n for n in range(count) if n != k]
        angle = sum(found.cosine[k][n] for n in others) / max(len(others), 1)
        given = sum(found.effects[k][t] for t in others) / max(len(others), 1)
        taken = sum(found.effects[t][k] for t in others) / max(len(others), 1)
        figures = [f"{found.sizes[k]:.3g}", f"{angle:.2f}", f"{found.losses[k]:.3g}"]
        shares = [given, taken, *([found.correction[k]] if corrected else [])]
        rows.append([name, str(group_of[name]), *figures, *map(_signed, shares)])
    head = ["task", ">group", ">size", ">cosine", ">loss", ">gives others", ">gets from others"]
    head += [">from correction"] if corrected else []
    console.print(table_of(head, rows))
    how = "measured" if found.measured else "in first order"
    console.print(Text(_LEGEND.replace("HOW", how), style="dim"))
    fights = sorted(
        (found.effects[k][t], k, t) for k in range(count) for t in range(count) if k != t
    )
    worst = [
        [names[k], names[t], _signed(effect), f"{found.cosine[k][t]:.2f}",
         f"{found.sign_conflict[k][t]:.0%}", f"{found.gradients[k][t]:.2f}"]
        for effect, k, t in fights[:_PAIRS] if effect < 0
    ]  # fmt: skip
    if worst:
        columns = ("task", "costs", ">its loss", ">cosine", ">signs apart", ">gradients")
        console.print(table_of(columns, worst))
    layers = (
        [of.layer, f"{of.cosine:.2f}", f"{of.sign_conflict:.0%}", f"{of.lowest:.2f}",
         ", ".join(of.furthest)]
        for of in found.layers
    )  # fmt: skip
    console.print()
    console.print(table_of(("layer", ">cosine", ">signs apart", ">lowest", "~of"), layers))
    together = "; ".join(", ".join(group) for group in found.groups)
    print_facts({"together": together, "split": _told(found.split)}, console)
    for said in found.alone:
        console.print(f"warning: {said}")


_LEGEND = """
gives others      by how much their losses would rise without it, HOW; below 0 they would fall
gets from others  by how much its loss would rise without one of them, a mean over them
signs apart       share of the numbers that both tasks move which they move in opposite directions
gradients         cosine of what the two ask of the shared backbone"""


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _told(split: Split | None) -> str:
    """The offer, in one line."""
    if split is None:
        return ""
    sizes = " and ".join(str(len(group)) for group in split.groups)
    tasks = " | ".join(", ".join(group) for group in split.groups)
    if split.together is None or split.apart is None:
        return f"two merges of {sizes} ({tasks}); --try ROUNDS measures what they keep"
    return (
        f"two merges of {sizes} keep {100 * split.apart:.1f} %, one of all "
        f"{100 * split.together:.1f} % ({split.how}): {tasks}"
    )


def print_explanation(found: Explanation, console: Console) -> None:
    """What a tint learned: what it changed, how far it went, whose it could share."""
    changes = found.changes
    console.print(title(f"{found.of}: {found.task}", f"what its tint layer learned ({found.site})"))
    print_facts(
        {
            "agrees with the expert": f"{percent(changes.agreement)}; without the tint "
            f"{percent(changes.agreement_without)}, on {found.examples} examples of its pool",
            "changed": f"{percent(changes.changed)} of the answers; {changes.gained} examples are "
            f"nearer to the expert, {changes.lost} further from it",
        },
        console,
    )
    rows = [
        [str(one.row), *(one.said.get(name, "-")[:40] for name in WORDS), percent(one.changed),
         (one.text or "")[:60]]
        for one in changes.shown
    ]  # fmt: skip
    if rows:
        console.print()
        console.print(table_of((">row", *WORDS.values(), ">changed", "text"), rows))
    drifts = (
        [drift.tensor, drift.shared or "-", two(drift.from_expert), two(drift.from_shared),
         " ".join(two(way.tinted) for way in drift.directions)]
        for drift in found.tensors
    )  # fmt: skip
    columns = ("tensor", "shared", ">from expert", ">from shared", "along the expert's directions")
    console.print()
    console.print(table_of(columns, drifts))
    heads = (
        [head.attention, " ".join(map(two, head.from_expert)), " ".join(map(two, head.from_shared))]
        for head in found.heads
    )
    if found.heads:
        console.print()
        console.print(table_of(("attention heads", "from expert", "from shared"), heads))
    layers = (
        [of.layer, two(of.backbone_expert), two(of.tinted_expert), two(of.backbone_tinted)]
        for of in found.features
    )
    console.print()
    names = ("features (CKA)", ">backbone, expert", ">tinted, expert", ">backbone, tinted")
    console.print(table_of(names, layers))
    swaps = (
        [one.task, two(one.distance), moved(one.here, one.here_before),
         moved(one.there, one.there_before), verdict(one)]
        for one in found.swaps
    )  # fmt: skip
    if found.swaps:
        console.print()
        wanted = ("task", ">distance", ">here under its tint", ">there under this", "could share")
        console.print(table_of(wanted, swaps))
    for said in found.notes:
        console.print(Text(said, style="dim"))


def explanation_text(found: Explanation) -> str:
    """The same as a file holds it."""
    file = io.StringIO()
    print_explanation(escaped(found), open_console(file))
    return file.getvalue()


def print_drift(found: Drift, console: Console) -> None:
    """What differs, how many answers are right, and what to do."""
    counts = f"{found.examples:,} new examples beside {found.known:,}"
    console.print(title(f"{found.merge} {found.task}", f"{found.data}, {counts}"))
    rows = [
        [of.of, of.statistic, f"{of.value:.3f}", f"{of.adjusted:.3f}",
         "differs" if of.adjusted <= found.alpha else ""]
        for of in found.differences
    ]  # fmt: skip
    console.print(table_of(("of", "by", ">value", ">p", ""), rows))
    facts = {
        "examples": "differ" if found.drifted else "no difference was found",
        "right": _estimated(found.estimate),
        "by expert": _estimated(found.disagreement),
        "elsewhere": "" if found.elsewhere is None else f"{100 * found.elsewhere:.1f} %",
    }
    print_facts(facts, console)
    for said in found.advice:
        console.print(said)


def _estimated(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return (
        f"{100 * estimate.value:.1f} ± {100 * estimate.error:.1f} % {estimate.metric}, "
        f"estimated by {estimate.by}; {100 * estimate.known:.1f} % when the merge was made"
    )


def print_checks(checks: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Earlier checks, a line each."""
    rows = []
    for of in checks:
        estimate = of["estimate"]
        share = "" if estimate is None else f"{100 * estimate['value']:.1f} %"
        differ = [d["of"] for d in of["differences"] if d["adjusted"] <= of["alpha"]]
        figures = [f"{of['examples']:,}", share, ", ".join(differ) or "no"]
        rows.append([moment(of["at"]), of["merge"], of["task"], of["data"], *figures])
    head = ("at", "merge", "task", "data", ">examples", ">right", "differs")
    console.print(table_of(head, rows))
