"""Learning rates by kind of task: which of them, for coefficients and for tints, agree best.

    python -m benchmarks.rates [--rounds 100] [--kinds depth ...] [--store FOLDER]

Scikit-learn's digits, shown in four ways that the base has not seen; what is asked about them is of
each kind in turn: which digit, properties of it, where its ink lies, and about each pixel of the
upright digit a class, a depth or a direction. A small transformer was pretrained to name upright
digits, and four experts per kind are fine-tuned from it. A setting is judged by agreement with the
experts on images that the fit does not see. With ``--store`` what is done is kept there, and a
stopped run goes on. The last line is one JSON object: by kind, the agreement of every setting.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import tintray
from benchmarks.kept import Kept
from examples.digits import TASKS, load, split
from tintray.tasks.evaluation import mean

SHOWN = ("turned", "mirrored", "inverted", "scrambled")
FACTORY = "benchmarks.rates:make"
BLOCK = "blocks.3"

SETTINGS: dict[str, tuple[str, ...]] = {
    "head": (),
    "head, tint / 4": ("fit.tint_lr=0.0025",),
    "head, tint * 4": ("fit.tint_lr=0.04",),
    "head, coefficients / 4": ("fit.coefficient_lr=0.005",),
    "head, coefficients * 4": ("fit.coefficient_lr=0.08",),
    "head, constant": ("fit.schedule=constant",),
    "block": (f"tint.sites={BLOCK}",),
    "block, tint / 4": (f"tint.sites={BLOCK}", "fit.tint_lr=0.0005"),
    "block, tint * 4": (f"tint.sites={BLOCK}", "fit.tint_lr=0.008"),
}
"""Around the defaults: 1e-2 for a head, 2e-3 for a block, 2e-2 for coefficients, cosine."""


class Net(nn.Module):
    """A transformer on the 16 patches of an 8×8 image.

    It answers once per image (``pixels`` False), or with ``width`` channels per pixel.
    """

    def __init__(self, width: int, pixels: bool, hidden: int = 48, layers: int = 4) -> None:
        super().__init__()
        self.pixels = pixels
        self.patches = nn.Conv2d(3, hidden, 2, stride=2)
        self.places = nn.Parameter(0.05 * torch.randn(1, 16, hidden))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, 4, 4 * hidden, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, width * (4 if pixels else 1))
        self.num_labels = width

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images [N, 1 or 3, 8, 8] to answers [N, width] or [N, width, 8, 8]."""
        x = self.patches(pixel_values.expand(-1, 3, -1, -1)).flatten(2).mT + self.places
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if not self.pixels:
            answers: Tensor = self.head(x.mean(1))
            return answers
        return functional.pixel_shuffle(self.head(x).mT.unflatten(2, (4, 4)), 2)


def make(config: Mapping[str, Any]) -> nn.Module:
    """What ``factory`` names."""
    return Net(config["width"], config["pixels"])


# -- what is asked, by kind ------------------------------------------------------------------------


def _smooth(images: NDArray[np.uint8]) -> Tensor:
    """Ink in [0, 1], [N, 8, 8], blurred a little."""
    ink = torch.from_numpy(images.astype(np.float32) / 255)[:, None]
    return functional.avg_pool2d(ink, 3, 1, 1, count_include_pad=False)[:, 0]


def _properties(images: NDArray[np.uint8], digits: NDArray[np.int64]) -> Tensor:
    """Odd; five or more; has a hole; prime."""
    asked = ({1, 3, 5, 7, 9}, {5, 6, 7, 8, 9}, {0, 6, 8, 9}, {2, 3, 5, 7})
    return torch.tensor([[float(d in answers) for answers in asked] for d in digits.tolist()])


def _ink(images: NDArray[np.uint8], digits: NDArray[np.int64]) -> Tensor:
    """Where the ink's centre lies, and how much there is; standardised, [N, 3]."""
    ink = torch.from_numpy(images.astype(np.float32) / 255)
    places = torch.arange(8.0)
    total = ink.sum((1, 2))
    found = [(ink.sum(1) * places).sum(1) / total, (ink.sum(2) * places).sum(1) / total, total]
    values = torch.stack(found, 1)
    return (values - values.mean(0)) / values.std(0)


def _normals(images: NDArray[np.uint8], digits: NDArray[np.int64]) -> Tensor:
    down, right = torch.gradient(_smooth(images), dim=(1, 2))
    return functional.normalize(torch.stack([-2 * right, -2 * down, torch.ones_like(down)], 1))


def _cosine(found: Tensor, truth: Tensor) -> Tensor:
    return (1 - functional.cosine_similarity(found, truth, dim=1)).mean()


Ask = Callable[[NDArray[np.uint8], NDArray[np.int64]], Tensor]
KINDS: dict[str, tuple[int, bool, Ask, Callable[[Tensor, Tensor], Tensor]]] = {
    "classification": (10, False, lambda _, d: torch.from_numpy(d), functional.cross_entropy),
    "multi_label": (4, False, _properties, functional.binary_cross_entropy_with_logits),
    "regression": (3, False, _ink, functional.l1_loss),
    "segmentation": (
        *(3, True, lambda x, _: (3 * _smooth(x)).long().clamp(0, 2)),
        functional.cross_entropy,
    ),
    "depth": (
        *(1, True, lambda x, _: 0.5 + _smooth(x)),
        lambda found, truth: functional.l1_loss(found[:, 0], truth),
    ),
    "normals": (3, True, _normals, _cosine),
}
"""Kind → answers, whether per pixel, what is asked about upright digits, and the experts' loss."""


# -- the zoo ---------------------------------------------------------------------------------------


def train(
    net: Net, images: NDArray[np.uint8], truth: Tensor, loss: Any, epochs: int, rate: float
) -> None:
    """AdamW, one cycle."""
    random = torch.Generator().manual_seed(0)
    x = torch.from_numpy(images).float().div(255)[:, None]
    steps = epochs * -(-len(x) // 32)
    adam = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=steps, pct_start=0.2)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=random).split(32):
            adam.zero_grad()
            loss(net(x[rows]), truth[rows]).backward()
            adam.step()
            cycle.step()


def build(zoo: Path, kind: str) -> None:
    """The base, and the kind's four experts with their pools."""
    width, pixels, ask, loss = KINDS[kind]
    torch.manual_seed(0)
    images, digits = load()
    upright, pool, test = split(digits)
    if not (zoo / "pretrained").exists():
        pretrained, truth = Net(10, False), torch.from_numpy(digits[upright])
        train(pretrained, images[upright], truth, functional.cross_entropy, 20, 2e-3)
        _save(pretrained, zoo / "pretrained")
    backbone = {n: t for n, t in _read(zoo / "pretrained").items() if not n.startswith("head")}
    base = Net(width, pixels)  # the same backbone in the experts' configuration
    base.load_state_dict(backbone, strict=False)
    _save(base, zoo / f"{kind}.base")
    truth = ask(images, digits)
    labels = (truth.movedim(1, -1) if kind == "normals" else truth).numpy()
    for name in SHOWN:
        shown = np.ascontiguousarray(TASKS[name](images))
        net = Net(width, pixels)
        net.load_state_dict(backbone, strict=False)
        train(net, shown[pool], truth[pool], loss, 12, 3e-3)
        _save(net, zoo / f"{kind}.{name}")
        data = {"train": pool, "test": test[:500]}
        arrays = {f"x_{part}": shown[rows] for part, rows in data.items()}
        arrays |= {f"y_{part}": labels[rows] for part, rows in data.items()}
        np.savez(zoo / f"{kind}.{name}.npz", **arrays)


def _save(net: Net, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    config = {"width": net.num_labels, "pixels": net.pixels}
    (folder / "config.json").write_text(json.dumps(config))


def _read(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


def job(zoo: Path, kind: str, store: Path) -> dict[str, Any]:
    """A job over the kind's four experts."""
    path = {name: str(zoo / f"{kind}.{name}.npz") for name in SHOWN}
    return {
        "name": kind.replace("_", "-"),
        "base": str(zoo / f"{kind}.base"),
        "factory": FACTORY,
        "tasks": [
            {
                "name": name,
                "kind": kind,
                "expert": str(zoo / f"{kind}.{name}"),
                "pool": {"path": path[name], "split": "train"},
                "test": {"path": path[name], "split": "test"},
            }
            for name in SHOWN
        ],
        "cluster": {"workers": 0},
        "store": str(store),
    }


def measure(zoo: Path, kind: str, rounds: int) -> dict[str, float]:
    """Agreement on other images than the pools', mean over tasks, of every setting."""
    kept = Kept(zoo)
    kept.once(f"zoo {kind}", "", lambda: build(zoo, kind))
    file = zoo / f"{kind}.yaml"
    file.write_text(json.dumps(job(zoo, kind, zoo / "store")))  # JSON is YAML

    def agreement(overrides: Sequence[str]) -> float:
        summary = tintray.run(
            tintray.load_spec(file, (*overrides, f"fit.rounds={rounds}"))
        ).summary()
        return mean([task.agreement for task in summary.tasks])

    return {
        name: kept.once(f"{kind}, {name}, {rounds}", "", partial(agreement, overrides))
        for name, overrides in SETTINGS.items()
    }


def main() -> None:
    """Print a markdown table and, last, one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--store", type=Path, help="keep zoos and results here, and go on there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="tintray-rates-") as scratch:
        zoo = (arguments.store or Path(scratch)).resolve()
        print("| kind | " + " | ".join(SETTINGS) + " |")
        print("|---" * (len(SETTINGS) + 1) + "|", flush=True)
        result = {}
        for kind in arguments.kinds:
            result[kind] = measure(zoo, kind, arguments.rounds)
            cells = " | ".join(f"{100 * result[kind][name]:.1f}" for name in SETTINGS)
            print(f"| {kind} | {cells} |", flush=True)
    print(json.dumps({"rounds": arguments.rounds, "agreement": result}))


if __name__ == "__main__":
    main()
