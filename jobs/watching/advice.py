"""What to do about new examples that differ, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from tintray.references.estimates import Estimate
from tintray.references.inputs import LOOKS
from tintray.references.two_samples import Difference

LOST = 0.03
"""Of the share of right answers: less is not worth a change of the merge."""
ELSEWHERE = 0.2
"""Of the examples: so many of others' are no accident."""


def advice(
    merge: str,
    task: str,
    differences: Sequence[Difference],
    alpha: float,
    estimate: Estimate | None,
    elsewhere: float | None,
) -> list[str]:
    """What to do about a task whose new examples differ in this way; nothing where they do not."""
    found = [difference.of for difference in differences if difference.adjusted <= alpha]
    if not found:
        return []
    said = []
    if elsewhere is not None and elsewhere > ELSEWHERE:
        said.append(
            f"{elsewhere:.0%} of the examples look like another task's or like none's: route them "
            f"away from '{task}' (the task auto of `tintray serve`), and look at where they come "
            "from"
        )
    lost = 0.0 if estimate is None else estimate.known - estimate.value
    if estimate is not None and lost > max(LOST, estimate.error):
        said.append(
            f"the {estimate.metric} seems to have fallen by {100 * lost:.0f} points: label a few "
            f"examples and look (`tintray eval {merge} --task {task} --data NEW --labels`); where "
            f"the expert still does well on them, `tintray refresh-task {merge} {task}` with such "
            "examples in its pool learns the tint again; where it does not, a new expert is needed"
        )
    elif "classes" in found and not {"features", *LOOKS} & set(found):
        said.append(
            "the answers are of other classes, while the inputs look as they did: if the world has "
            "changed its mix, nothing is wrong"
        )
    else:
        said.append(
            f"the {' and '.join(found)} of the examples differ, and nothing says that more answers "
            f"are wrong: keep watching, or label a few (`tintray eval {merge} --task {task} --data "
            "NEW --labels`)"
        )
    return said
