"""``python -m tests.fuzz``: try damaged inputs on every surface.

The last line is a JSON object with the numbers of inputs and findings; the exit code is 1 if there
are findings. Each is kept below ``build/fuzz``, with the command that repeats it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.fuzz.runner import listing, replay, run
from tests.fuzz.surfaces import SURFACES

KEPT = Path("build/fuzz")


def main() -> int:
    """Run what the command line asks for; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    names = [surface.name for surface in SURFACES]
    parser.add_argument("--surface", action="append", choices=names, help="only these")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many, of all surfaces")
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kept", type=Path, default=KEPT, help="where findings are kept")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="try a kept input again")
    asked = parser.parse_args()
    if asked.replay is not None:
        found = replay(SURFACES, asked.replay)
        print("answered well" if found is None else f"{found.kind}\n{found.text}")
        return int(found is not None)
    chosen = [s for s in SURFACES if asked.surface is None or s.name in asked.surface]
    result = run(
        chosen,
        inputs=asked.inputs,
        seconds=asked.seconds,
        seed=asked.seed,
        kept=asked.kept,
        workers=asked.workers,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    for line in listing(result.findings):
        print(line)
    summary = {
        "inputs": result.surfaces.total(),
        "findings": len({(found.surface, found.kind) for found in result.findings}),
        "surfaces": dict(sorted(result.surfaces.items())),
    }
    print(json.dumps(summary))
    return int(bool(result.findings))


if __name__ == "__main__":
    sys.exit(main())
