"""Which examples of a batch count, and how much: filters that go by the confidence of a self-label.

An expert's confidence is its largest softmax probability. A filter answers with one weight per
example; 0 drops it. Losses divide by the whole batch, so a batch of which nothing is selected is
harmless: it moves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tintray.tasks.kinds import Filter

WINDOW = 512
"""Examples over which a threshold that sets itself looks back."""

_ENOUGH = 64  # of them before it drops anything
_OF_A_BATCH = 64  # of them that one batch gives at most: the window spans eight batches of pixels


@dataclass
class ConfidenceFilter:
    """A filter with what it knows of one task."""

    filter: Filter = "agreement"
    # The least confidence that ``threshold`` and ``top_p`` select. None for one that sets itself,
    # round by round, from the agreement of merge and expert on the last ``WINDOW`` examples. Where
    # expert and merge are right with p and q ≤ p and err apart from each other, they agree with
    # about p·q ≤ p² (chance agreements among C classes taken off). So √agreement is at most p, and
    # a self-label is selected where √agreement at its confidence reaches the target.
    threshold: float | None = 0.0
    # what the expert's logits are divided by before its confidence is read off them: 1, or what a
    # few true labels say (``calibration.fit_temperature``)
    temperature: float = 1.0
    # how often a self-label must be right, at least, to be selected by a threshold that sets itself
    target_precision: float = 0.5
    _seen: Tensor = field(default_factory=lambda: torch.full((WINDOW, 2), torch.nan), repr=False)

    def weights(self, merged: Tensor, expert: Tensor) -> Tensor:
        """How much each example counts, in [0, 1]: [N], from logits [N, C] of merge and expert.

        ``agreement`` selects an example where both predict the same class, or where they differ and
        the expert is at least as confident as the merge; it drops those on which the merge
        contradicts its expert with more confidence than the expert has (``crosspseudoconf`` of
        SyMerge, arXiv 2412.19098). ``threshold`` and ``top_p`` select the confident. ``weight``
        cuts nothing: an example counts by its expert's confidence, above what guessing has.
        """
        match self.filter:
            case "none":
                return torch.ones(len(merged), device=merged.device)
            case "agreement":
                sure, class_ = merged.detach().softmax(-1).max(-1)
                expert_sure, expert_class = (expert / self.temperature).softmax(-1).max(-1)
                return ((class_ == expert_class) | (expert_sure >= sure)).float()
            case "threshold" | "top_p":
                return (confidence(expert, self.temperature) >= self.current_threshold).float()
            case "weight":
                guess = 1 / expert.shape[-1]
                sure = (confidence(expert, self.temperature) - guess) / (1 - guess)
                return sure.clamp(0, 1)

    @property
    def current_threshold(self) -> float:
        """The threshold that holds now."""
        if self.threshold is not None:
            return self.threshold
        seen = self._seen[~self._seen[:, 0].isnan()].double()
        if len(seen) < _ENOUGH:
            return 0.0
        return _threshold(seen[:, 0], seen[:, 1], self.target_precision**2)

    def observe(self, merged: Tensor, expert: Tensor) -> None:
        """Remember how merge and expert did on these examples, where the threshold sets itself.

        Of many (tokens, pixels), as many as ``_OF_A_BATCH``, evenly spread over them.
        """
        if self.threshold is None and self.filter == "threshold":
            every = slice(None, None, max(1, -(-len(merged) // _OF_A_BATCH)))
            merged, expert = merged[every], expert[every]
            same = (merged.argmax(-1) == expert.argmax(-1)).float()
            # where they differ, minus what chance adds on average
            agreed = same - (1 - same) / max(1, expert.shape[-1] - 1)
            new = torch.stack([confidence(expert, self.temperature), agreed], 1).cpu().float()
            self._seen = torch.cat([self._seen, new])[-WINDOW:]

    def state(self) -> Tensor:
        """What it has seen, [WINDOW, 2]: all that a resumed job needs of it."""
        return self._seen.clone()

    def restore(self, state: Tensor) -> None:
        """Go back to what ``state`` returned."""
        self._seen = state.clone()


def confidence(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The largest probability of each row: [N], from logits [N, C]."""
    return (logits / temperature).softmax(-1).amax(-1)


def top_p_threshold(expert: Tensor, share: float, temperature: float = 1.0) -> float:
    """The confidence that the surest ``share`` of a pool has at least, from logits [N, C]."""
    surest = confidence(expert, temperature).sort(descending=True).values
    return surest[max(1, round(share * len(surest))) - 1].item()


def labelled_threshold(
    expert: Tensor, labels: Tensor, target: float = 0.5, temperature: float = 1.0
) -> float:
    """The least confidence above which calibrated self-labels are right with ``target``: from few.

    With logits [N, C] and true labels [N] of a few examples: sorted by confidence, the longest run
    of the surest examples whose every tail is right at least as often as ``target`` (a monotone
    fit, so that one lucky guess among the unsure does not let all of them in). 0 selects all.
    """
    right = (expert.argmax(-1) == labels).double()
    return _threshold(confidence(expert, temperature).double(), right, target)


def _threshold(sure: Tensor, quality: Tensor, target: float) -> float:
    """The least confidence whose isotonic quality reaches ``target``; above all where none does."""
    order = sure.argsort()
    fitted = isotonic(quality[order])
    reached = (fitted >= target).nonzero()
    if len(reached) == 0:
        return 1.0 + torch.finfo(sure.dtype).eps
    first = int(reached[0])
    return 0.0 if first == 0 else sure[order][first].item()


def isotonic(values: Tensor) -> Tensor:
    """The non-decreasing sequence nearest to ``values`` [N] (pool adjacent violators)."""
    means: list[float] = []
    counts: list[int] = []
    for value in values.tolist():
        means.append(value)
        counts.append(1)
        while len(means) > 1 and means[-2] >= means[-1]:
            total = counts[-2] + counts[-1]
            merged = (means[-2] * counts[-2] + means[-1] * counts[-1]) / total
            means[-2:], counts[-2:] = [merged], [total]
    repeats = torch.tensor(counts, dtype=torch.int64)
    return torch.tensor(means, dtype=torch.float64).repeat_interleave(repeats)
