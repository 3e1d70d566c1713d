"""Which scale of task arithmetic agrees best with the experts before any fit, over the tasks.

    python -m benchmarks.start_scale [--zoo DIR] [--examples 40]

DIR holds ``zoo/`` and ``data/vision/``. For K = 2, 5 and 10 of the ten scripts, θ₀ + λ Σ τₖ at
several λ, and the mean share of the first unlabelled pool examples on which it predicts what the
expert does; of K = 2 and 5 the mean over two sets of experts.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tintray.checkpoints.model_folder import open_model_folder
from tintray.data.source import DataSource
from tintray.models.loading import load_base, load_expert
from tintray.models.structure import backbone_names
from tintray.pools.pool import Pool
from tintray.pools.preparing import open_pool
from tintray.tasks.classes import CLASSIFICATION
from tintray.tasks.evaluation import score
from tintray.tasks.outputs import Outputs
from tintray.tinting.self_labels import predict

SHARED = Path(__file__).parents[2] / "shared"
SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.65, 1.0)
SETS = {2: (0, 4), 5: (0, 5), 10: (0,)}  # how many experts -> where each set of them begins


@dataclass(frozen=True)
class Expert:
    """One expert, its pool, what it predicts there, and its task vector by tensor."""

    name: str
    module: nn.Module
    pool: Pool
    labels: Outputs
    vector: dict[str, Tensor]

    def agreement(self, backbone: dict[str, Tensor]) -> float:
        """With itself as it was, on this backbone."""
        with torch.no_grad():
            for name, tensor in backbone.items():
                self.module.get_parameter(name).copy_(tensor)
        merged = predict(self.module, self.pool)
        return score(self.name, CLASSIFICATION, merged, self.labels, None).agreement


def load(zoo: Path, examples: int) -> tuple[dict[str, Tensor], list[Expert]]:
    """θ₀ and the experts."""
    base = open_model_folder(zoo / "zoo" / "base", role="base")
    start: dict[str, Tensor] = {}
    found = []
    for name in sorted(p.name for p in (zoo / "zoo").iterdir() if p.is_dir() and p.name != "base"):
        checkpoint = open_model_folder(zoo / "zoo" / name, role=name, base=base)
        module, origin = load_expert(checkpoint, name), load_base(base, like=checkpoint)
        start = {n: origin.get_parameter(n).detach() for n in backbone_names(origin)}
        order = DataSource(str(zoo / "data" / "vision" / f"{name}.npz"), f"train[:{examples}]")
        pool = open_pool(order, checkpoint, CLASSIFICATION, name, name)
        vector = {n: (module.get_parameter(n) - tensor).detach() for n, tensor in start.items()}
        found.append(Expert(name, module, pool, predict(module, pool), vector))
    return start, found


def mean_agreement(start: dict[str, Tensor], experts: Sequence[Expert], scale: float) -> float:
    """Of these experts with their merge at one scale."""
    backbone = {
        name: tensor + scale * torch.stack([expert.vector[name] for expert in experts]).sum(0)
        for name, tensor in start.items()
    }
    return sum(expert.agreement(backbone) for expert in experts) / len(experts)


def mean_cosine(experts: Sequence[Expert]) -> float:
    """Between the task vectors of different experts."""
    flat = torch.stack([torch.cat([t.flatten() for t in e.vector.values()]) for e in experts])
    unit = torch.nn.functional.normalize(flat)
    count = len(experts)
    return float((unit @ unit.t()).sum() - count) / (count * (count - 1))


def main() -> None:
    """Print a row for each number of experts and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--zoo", type=Path, default=SHARED)
    parser.add_argument("--examples", type=int, default=40)
    arguments = parser.parse_args()
    start, experts = load(arguments.zoo, arguments.examples)
    found: dict[str, dict[str, float]] = {}
    for count, origins in SETS.items():
        row = {
            str(scale): round(
                sum(mean_agreement(start, experts[o : o + count], scale) for o in origins)
                / len(origins),
                3,
            )
            for scale in SCALES
        }
        found[str(count)] = row
        print(count, row, flush=True)
    best = {count: max(row, key=row.__getitem__) for count, row in found.items()}
    print(json.dumps({"best": best, "mean_cosine": round(mean_cosine(experts), 4)}))


if __name__ == "__main__":
    main()
