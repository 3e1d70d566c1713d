"""Self-labels: an expert's outputs over a pool, computed once; afterwards no expert is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tintray.errors import CheckpointError, DataError, TintrayError
from tintray.models.calling import answer
from tintray.numerics.choices import Precision
from tintray.numerics.precision import computing
from tintray.pools.feeding import Pace, batches_on
from tintray.pools.pool import Pool
from tintray.references.observing import HeadInputs, Observed, head_of
from tintray.references.reference import Reference
from tintray.tasks.classes import CLASSIFICATION
from tintray.tasks.evaluation import TaskScore
from tintray.tasks.kind import Kind
from tintray.tasks.outputs import Outputs, TopTokens, concatenated
from tintray.tinting.tint_layers import capture


def predict(
    module: nn.Module,
    pool: Pool,
    kind: Kind = CLASSIFICATION,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
) -> Outputs:
    """A module's answers over a whole pool, as float32: logits [N, C] of a classifier.

    The module is on ``device``, and its passes compute in ``precision``.
    """

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        with computing(precision, module, device):
            return answer(module, batch)

    return ask(run, pool, kind, device)


def observe(
    module: nn.Module, pool: Pool, kind: Kind, *, device: str = "cpu"
) -> tuple[Outputs, Observed]:
    """A module's answers over a pool, as ``predict`` gives them, and what is noted of each."""
    inputs = HeadInputs()
    with inputs.hooked(module, head_of(module)):
        run = inputs.told_of(lambda batch: answer(module, batch))
        outputs = ask(run, pool, kind, device)
    return outputs, Observed.of(kind, outputs, pool.mask, inputs)


def known_by(
    module: nn.Module,
    pool: Pool,
    kind: Kind,
    observed: Observed,
    score: TaskScore,
    *,
    device: str = "cpu",
) -> Reference | None:
    """What new examples are compared with, where a module answered a pool as ``observed``."""

    def answered(pools: Iterable[Pool]) -> Iterator[Observed]:
        return (observe(module, of, kind, device=device)[1] for of in pools)

    return Reference.of(observed, score, pool, answered)


@torch.inference_mode()
def ask(
    run: Callable[[Mapping[str, Tensor]], Tensor],
    pool: Pool,
    kind: Kind = CLASSIFICATION,
    device: str = "cpu",
) -> Outputs:
    """Answers over a pool of whatever turns a batch on ``device`` into them.

    Answers per token are padded to the longest example of the pool; all are in memory.
    """
    answers, pace = [], Pace(device)
    for batch in batches_on(pool, device):
        answers.append(kind.reduced(run(batch).float()).to("cpu", non_blocking=True))
        pace.started()
    pace.over()
    return concatenated(answers)


@torch.inference_mode()
def predict_features(module: nn.Module, pool: Pool, path: str, *, device: str = "cpu") -> Tensor:
    """Features [N, d] of a module over a whole pool, at ``path``; see ``tint_layers.capture``.

    The module is on ``device``.
    """
    captured: list[Tensor] = []
    hook = capture(module, path, head_of(module), captured)
    try:
        for batch in batches_on(pool, device):
            answer(module, batch)
    finally:
        hook.remove()
    return torch.cat(captured).to("cpu")


def self_labels(
    expert: nn.Module,
    pool: Pool,
    role: str,
    kind: Kind = CLASSIFICATION,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
) -> Outputs:
    """The expert's answers over its pool; see ``predict``.

    Raises
    ------
    CheckpointError
        If the expert answers with a value that is not finite.
    """
    outputs = predict(expert, pool, kind, device=device, precision=precision)
    _check_finite(outputs, f"{role} gives", f"of {len(pool):,} pool examples")
    return outputs


def try_out(
    run: Callable[[Mapping[str, Tensor]], Tensor],
    pool: Pool,
    kind: Kind,
    width: int,
    role: str,
    where: str,
    *,
    device: str = "cpu",
) -> None:
    """Run a model on an example or two, before anything is spent on all of them.

    Parameters
    ----------
    run
        Turns a batch on ``device`` into the model's answers.
    width
        How many answers there should be.
    role, where
        What messages call the model, and the data.

    Raises
    ------
    DataError
        The model does not take the example, or answers otherwise than its kind of task asks.
    CheckpointError
        Its answer is not finite.
    """
    try:
        outputs = ask(run, pool, kind, device)
    except (TintrayError, MemoryError):
        raise
    except Exception as error:  # whatever a model raises over its input: each has its own
        raise DataError(
            f"{role} cannot be run on {where} ({type(error).__name__}: {error}); expected examples "
            "as the model takes them, check its image processor or tokenizer"
        ) from error
    kind.check_outputs(outputs, width, role)
    _check_finite(outputs, f"{role} gives", f"of {len(pool)} examples of {where} that were tried")


def _check_finite(outputs: Outputs, gives: str, of: str) -> None:
    values = outputs.logs if isinstance(outputs, TopTokens) else outputs
    finite = torch.isfinite(values).flatten(1).all(-1)
    if not finite.all():
        raise CheckpointError(
            f"{gives} NaN or infinite outputs on {int((~finite).sum()):,} {of}; expected finite "
            "logits, check the expert and its preprocessing"
        )


def features_key(expert_digest: str, pool_digest: str, path: str) -> str:
    """The content hash under which an expert's features at a depth are cached."""
    text = f"self-features 1 {path} {expert_digest} {pool_digest}"
    return hashlib.sha256(text.encode()).hexdigest()


def labels_key(expert_digest: str, pool_digest: str, how: str = "") -> str:
    """The content hash under which self-labels are cached: of expert, pool and preprocessing.

    ``how`` they were ``asked`` for belongs to it.
    """
    text = f"self-labels 1 {expert_digest} {pool_digest}{how}"
    return hashlib.sha256(text.encode()).hexdigest()


def asked(precision: Precision, device: str = "cpu") -> str:
    """What a key says of how an expert was asked: nothing of float32 in memory, as ever."""
    return "".join(f" {said}" for said in (precision, device) if said not in ("float32", "cpu"))
