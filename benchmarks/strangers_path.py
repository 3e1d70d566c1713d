"""How long somebody takes from `pip install` to a merge of their own models, as they would go.

    python -m benchmarks.strangers_path [--wheel dist/tintray-….whl] [--folder DIR] [--demo]

A wheel (of this repository, where none is given) is installed in an empty environment, with no
variable and no file of this one. There three small ViTs are fine-tuned from a base on images drawn
here, and three LoRA adapters of PEFT on another copy of it (`benchmarks/stranger.py`). That is not
counted. Then, for either:

    tintray new models/…      looks at the experts and writes a job file
    tintray run job.yaml
    tintray show NAME

``yours`` are the seconds that a person is kept: what ``new`` and ``show`` take, and typing the
three commands at 200 characters a minute. Those of ``run`` are the machine's. Installing is told
beside. With ``--demo``, the demo is run there too: `examples/digits.py` and its job file, alone.
An sdist may be given in the place of a wheel.
The last line is one JSON object; the exit code is 1 if either path took more than it may.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST, MOST_YOURS = 300.0, 60.0
"""Seconds that a path may take, and how many of them a person may be kept."""
CHARACTERS_PER_SECOND = 200 / 60
PINS = ("--constraint", str(ROOT / "constraints.txt"))
TRAINING = ("peft", "accelerate", "psutil")  # what whoever fine-tunes adapters has


def main() -> int:
    """Go both ways, and print what each step took."""
    parser = argparse.ArgumentParser(description="Time a stranger's path from a wheel to a merge.")
    parser.add_argument("--wheel", type=Path, help="What to install [default: it is built]")
    parser.add_argument("--folder", type=Path, help="Where to work [default: one that is deleted]")
    parser.add_argument(
        "--environment",
        type=Path,
        help="One that has what the wheel needs [default: a new one]",
    )
    parser.add_argument("--demo", action="store_true", help="Run the demo there as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stranger-") as name:
        stranger = Stranger((given.folder or Path(name)).absolute(), given.environment)
        stranger.install(given.wheel and given.wheel.absolute())
        print(f"installed in {stranger.installing:.0f} s")
        stranger.learn_to_train()
        paths = {kind: stranger.walk(kind) for kind in ("models", "adapters")}
        if given.demo:
            print(f"the demo: {stranger.run_demo():.0f} s")
    within = True
    for kind, took in paths.items():
        within &= took["total"] <= MOST and took["yours"] <= MOST_YOURS
        print(f"{kind}: " + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in took.items()))
    print(json.dumps({"install": round(stranger.installing, 1), **paths, "within": within}))
    return 0 if within else 1


class Stranger:
    """Somebody with a folder, an empty environment in it, and a shell that knows nothing else."""

    def __init__(self, folder: Path, environment: Path | None) -> None:
        self._folder, self._home = folder, folder / "home"
        self._home.mkdir(parents=True)
        self._ready = environment is not None
        found = (environment or folder / "venv").absolute()
        kept = {name: os.environ[name] for name in ("LANG", "TZ") if name in os.environ}
        path = f"{found / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        self._shell = {**kept, "HOME": str(self._home), "PATH": path, "PIP_QUIET": "1"}
        if not self._ready:
            self._call(self._home, "/usr/bin/env", "python3", "-m", "venv", str(found))
        self.installing = 0.0

    def install(self, wheel: Path | None) -> None:
        """Install a wheel with all that it needs, or alone where that is there."""
        how = ("--no-deps", "--force-reinstall") if self._ready else PINS
        words = ("pip", "install", str(wheel or self._built()), *how)
        self.installing = self._call(self._home, *words)

    def _built(self) -> Path:
        """A wheel of this repository."""
        made = self._folder / "dist"
        self._call(ROOT, "pip", "wheel", "--no-deps", "--wheel-dir", str(made), str(ROOT))
        shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
        return next(made.glob("*.whl"))

    def learn_to_train(self) -> None:
        """Install, apart from the environment, what adapters are fine-tuned with."""
        apart = ("--no-deps", "--target", str(self._folder / "training"))
        self._call(self._home, "pip", "install", *apart, *PINS, *TRAINING)

    def walk(self, kind: str) -> dict[str, float]:
        """Train, which is not counted, then ``new``, ``run`` and ``show``; seconds of each."""
        here = self._folder / kind
        here.mkdir()
        trained = ("python", str(Path(__file__).with_name("stranger.py")), f"my-{kind}", kind)
        training = self._call(here, *trained, PYTHONPATH=str(self._folder / "training"))
        print(f"{kind}: trained in {training:.0f} s, which is not counted")
        name = f"my-{kind}"
        commands = {
            "new": f"tintray new {name} --data '{name}/data/{{task}}'",
            "run": "tintray run job.yaml",
            "show": f"tintray show {name}",
        }
        took = {step: self._call(here, "sh", "-c", words) for step, words in commands.items()}
        typing = sum(map(len, commands.values())) / CHARACTERS_PER_SECOND
        found = json.loads(
            subprocess.run(
                ["tintray", "show", name, "--json"],
                cwd=here,
                env=self._shell,
                check=True,
                capture_output=True,
            ).stdout
        )
        print(f"{kind}: {found['normalised_accuracy']:.1%} of the experts' accuracy")
        both = {"yours": typing + took["new"] + took["show"], "total": typing + sum(took.values())}
        return {step: round(seconds, 1) for step, seconds in (took | both).items()}

    def run_demo(self) -> float:
        """Seconds of the demo, from what the wheel has, its script and its job file."""
        here = self._folder / "demo"
        (here / "examples").mkdir(parents=True)
        for name in ("digits.py", "digits.yaml"):
            shutil.copy(ROOT / "examples" / name, here / "examples")
        self._call(here, "pip", "install", *PINS, "scikit-learn")
        making = self._call(here, "python", "examples/digits.py", "zoo/digits")
        return making + self._call(here, "tintray", "run", "examples/digits.yaml")

    def _call(self, folder: Path, *words: str, **more: str) -> float:
        """Seconds of a command that has to go well; what it says is shown if it does not."""
        began = time.perf_counter()
        done = subprocess.run(
            words, cwd=folder, env=self._shell | more, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{' '.join(words)} failed:\n{done.stdout}")
        return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
