"""Kinds that predict tokens of a vocabulary: going on with a text, and turning a text into another.

Of an expert's distributions the likeliest tokens are kept. The text itself is the label.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tintray.data.labels import IGNORED, LabelColumn
from tintray.errors import CheckpointError, DataError
from tintray.tasks.classes import accuracy
from tintray.tasks.confidence import ConfidenceFilter
from tintray.tasks.kind import Comparison, Kind, LossConfig
from tintray.tasks.losses import token_loss
from tintray.tasks.outputs import Mask, Outputs, TopTokens, cut_alike, share, top_tokens

TOP_TOKENS = 64
"""How many tokens of a language model's distribution are kept."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class TextKind(Kind):
    """A kind whose answers are distributions over a vocabulary, one for each token."""

    dims = (3,)
    takes_labels = False
    model: ClassVar[str]  # what messages call a model that can do such a task

    def check_model(self, expert: nn.Module, role: str) -> None:
        """Raise CheckpointError for an encoder–decoder that is to go on, or another to answer."""
        config: Any = getattr(expert, "config", None)
        pair = bool(getattr(config, "is_encoder_decoder", False))
        if not callable(getattr(expert, "generate", None)) or pair != self.writes:
            hint = "; such a task is of kind 'seq2seq'" if pair and not self.writes else ""
            raise CheckpointError(
                f"{role} is a {type(expert).__name__}; expected {self.model} for kind "
                f"'{self.name}'{hint}"
            )
        if pair and getattr(config, "decoder_start_token_id", None) is None:
            raise CheckpointError(
                f"{role}: the configuration has no decoder_start_token_id; expected the token that "
                "the decoder begins with"
            )

    def answer_width(self, module: nn.Module) -> int:
        """The size of the vocabulary."""
        return int(getattr(getattr(module, "config", None), "vocab_size", 0) or 0)

    def reduced(self, answers: Tensor) -> Outputs:
        """The likeliest tokens of [N, S, V]."""
        return top_tokens(answers, TOP_TOKENS)

    def read(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest token of each position, and its probability."""
        confidence, tokens = outputs.softmax(-1).max(-1)
        return tokens, confidence

    def compare(
        self,
        merged: Tensor,
        expert: TopTokens,
        mask: Mask,
        chosen: ConfidenceFilter,
        loss: LossConfig,
    ) -> Comparison:
        """The divergence over the expert's likeliest tokens; all are selected."""
        length = min(merged.shape[1], expert.logs.shape[1])
        merged = merged[:, :length]
        expert = TopTokens(expert.indices[:, :length], expert.logs[:, :length])
        agreement = self.agreement(merged, expert, mask)
        ones = torch.ones_like(agreement)
        return Comparison(token_loss(merged, expert, mask), ones, agreement, ones)

    def agreement(self, merged: Tensor, expert: TopTokens, mask: Mask) -> Tensor:
        """Where both have the same likeliest token."""
        return share(merged.argmax(-1) == expert.likeliest, mask)

    def mean_agreement(self, merged: TopTokens, expert: TopTokens, mask: Mask) -> float:
        """The share of all tokens that count, whichever text they are of."""
        ours, theirs = cut_alike(merged.likeliest, expert.likeliest)  # the rest is padding
        hits = (ours == theirs).float()
        weights = hits.new_ones(hits.shape) if mask is None else mask[:, : hits.shape[1]].float()
        return float((hits * weights).sum() / weights.sum().clamp_min(1))

    def measure(self, outputs: TopTokens, labels: Tensor, mask: Mask) -> dict[str, float]:
        """The share of tokens that are right."""
        return {"token_accuracy": accuracy(outputs.likeliest, labels)}

    def parse_labels(self, column: LabelColumn) -> list[str]:
        """Texts."""
        for value in column.values:
            if not isinstance(value, str) or _SURROGATE.search(value):
                raise DataError(
                    f"{column.where} holds {value!r:.40}; expected a text for each example"
                )
        return list(column.values)

    def unsure(self, outputs: TopTokens, mask: Mask) -> str | None:
        """Whether the likeliest token is hardly likelier than the least likely of those kept."""
        spread = (outputs.logs[..., 0] - outputs.logs[..., -1]).float()
        if outputs.logs.shape[-1] < 2 or float(spread.mean()) > math.log(2):
            return None
        return "finds the tokens of its pool nearly all alike likely"

    def constant(self, outputs: TopTokens, mask: Mask) -> bool:
        """Whether one token is the likeliest everywhere."""
        tokens = outputs.likeliest
        counted = tokens if mask is None else tokens[mask[:, : tokens.shape[1]].bool()]
        return counted.numel() > 0 and bool((counted == counted.flatten()[0]).all())

    def predictions(
        self, outputs: TopTokens, labels: Tensor, mask: Mask
    ) -> tuple[Tensor, Tensor, int]:
        """Predicted and true tokens, and how many there are at least."""
        tokens, true = (cut.long() for cut in cut_alike(outputs.likeliest, labels))
        return tokens[true != IGNORED], true[true != IGNORED], int(tokens.max()) + 2


class LanguageModelling(TextKind):
    """The next token of a text, at each position: logits [N, S, V]."""

    name = "language_modelling"
    goes_on = True
    model = "a causal model"

    def token_targets(
        self, inputs: Any, words: Any, assistant: Any, role: str
    ) -> tuple[Tensor, Tensor]:
        """Position t answers for token t + 1, of the assistant's tokens where these are marked."""
        ids, real = inputs["input_ids"].long(), inputs["attention_mask"].bool()
        if assistant is not None:
            marked = torch.zeros_like(real)
            for row, marks in enumerate(assistant):
                marked[row, : len(marks)] = torch.tensor(marks, dtype=torch.bool)
            real = real & marked
        mask = torch.zeros_like(real)
        mask[:, :-1] = real[:, 1:]
        following = torch.full_like(ids, IGNORED)
        following[:, :-1] = ids[:, 1:]
        return mask, following.masked_fill(~mask, IGNORED)


class Seq2Seq(TextKind):
    """The text that answers a text, token by token: logits [N, T, V]; see ``pools.sequences``."""

    name = "seq2seq"
    writes = True
    model = "an encoder–decoder model such as T5"

    def measure(self, outputs: TopTokens, labels: Tensor, mask: Mask) -> dict[str, float]:
        """The share of answers that are right at every position, and that of right tokens."""
        predicted, true = cut_alike(outputs.likeliest, labels)
        exact = ((predicted == true) | (true == IGNORED)).all(1).float().mean().item()
        return {"exact_match": exact, **super().measure(outputs, labels, mask)}
