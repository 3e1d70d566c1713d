"""Sequence to sequence: what the decoder of an encoder–decoder model is given to read.

A pool has sources only. An expert writes its own answer to each, greedily; it is then asked for the
distribution of every token of that answer, given the tokens before it, and the merge learns those
(sequence-level distillation, Kim & Rush, arXiv 1606.07947). No answer in a pool's file is read. On
a test set the decoder reads the right answer instead: a merge whose likeliest token is right at
every position is one that writes exactly that answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tintray.data.labels import IGNORED, Answers
from tintray.data.source import DataSource
from tintray.pools.feeding import batches_on
from tintray.pools.pool import Pool
from tintray.tasks.texts import Seq2Seq


def is_open(pool: Pool) -> bool:
    """Whether the decoder's inputs of a pool are still to be written."""
    return pool.answer_length is not None and "decoder_input_ids" not in pool.inputs


@torch.inference_mode()
def write(expert: nn.Module, pool: Pool, device: str = "cpu") -> Tensor:
    """An expert's own greedy answers to a pool's sources: int64 [N, T], -100 after the end.

    The expert is on ``device``.
    """
    model: Any = expert
    options = {"max_new_tokens": pool.answer_length, "do_sample": False, "num_beams": 1}
    batches = batches_on(pool, device)
    parts = [model.generate(**batch, **options)[:, 1:].to("cpu") for batch in batches]
    longest = max(part.shape[1] for part in parts)
    end = model.generation_config.eos_token_id
    ends = torch.tensor(end if isinstance(end, list) else [-1 if end is None else end])
    written = torch.full((len(pool), longest), IGNORED)
    row = 0
    for part in parts:
        written[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    over = torch.isin(written, ends).cumsum(1) - torch.isin(written, ends).long() > 0
    return written.masked_fill(over, IGNORED)


def encode(texts: Sequence[str], tokenizer: Any, length: int) -> Tensor:
    """Right answers as the tokens that the decoder should write: int64 [N, T], -100 at the end."""
    encoded = tokenizer(text_target=list(texts), truncation=True, max_length=length)["input_ids"]
    longest = max(len(row) for row in encoded)
    return torch.tensor([list(row) + [IGNORED] * (longest - len(row)) for row in encoded])


def answered(pool: Pool, answers: Tensor, config: Any) -> Pool:
    """A pool whose decoder reads ``answers`` [N, T], each token after the ones before it."""
    pad = 0 if config.pad_token_id is None else config.pad_token_id
    real = answers != IGNORED
    shifted = torch.full_like(answers, config.decoder_start_token_id)
    shifted[:, 1:] = answers[:, :-1].masked_fill(~real[:, :-1], pad)
    decoder = {"decoder_input_ids": shifted, "decoder_attention_mask": real.long()}
    total = hashlib.sha256(pool.digest.encode() + answers.numpy().tobytes())
    return replace(
        pool,
        inputs={**pool.inputs, **decoder},
        digest=total.hexdigest(),
        mask=real,
        targets=answers,
    )


def with_right_answers(
    pool: Pool, source: DataSource, tokenizer: Any, config: Any, role: str
) -> Pool:
    """A test set whose decoder reads the labels of its file.

    Raises DataError if there is no text for each example.
    """
    texts = Seq2Seq().read_labels(source, pool.rows, Answers(0), role)
    return answered(pool, encode(texts, tokenizer, pool.answer_length or 1), config)


def completed(expert: nn.Module, pool: Pool, device: str = "cpu") -> Pool:
    """A pool that a model can be run on: with the expert's answers, where it is to write them."""
    model: Any = expert
    return answered(pool, write(expert, pool, device), model.config) if is_open(pool) else pool


def written(before: Pool, after: Pool) -> dict[str, Tensor]:
    """What an expert wrote for a pool, to be stored with its outputs; nothing, where it did not."""
    return {"written": after.targets.int()} if is_open(before) and after.targets is not None else {}


def recalled(pool: Pool, stored: Mapping[str, Tensor], config: Any) -> Pool:
    """A pool with the answers that ``written`` returned."""
    return answered(pool, stored["written"].long(), config) if is_open(pool) else pool


def placeholder(pool: Pool, config: Any) -> Pool:
    """A pool with answers of full length that mean nothing, to measure time and memory with."""
    if not is_open(pool):
        return pool
    return answered(pool, torch.ones(len(pool), pool.answer_length or 1, dtype=torch.long), config)
