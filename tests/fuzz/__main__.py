"""``python -m tests.fuzz``: try damaged inputs on every surface.

The last line is a JSON object with the numbers of inputs and findings; the exit code is 1 if there
are findings. Each is kept below ``build/fuzz``, with the command that repeats it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

os.environ |= {  # before a library is imported that asks for them
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HF_HUB_OFFLINE"), "1"),
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TERM": "dumb",
    "TRANSFORMERS_VERBOSITY": "error",
    "COLUMNS": "200",
    "TINTRAY_CONFIG": os.devnull,
}


def main() -> int:
    """Run what the command line asks for; its exit code."""
    from tests.fuzz.runner import replay, run
    from tests.fuzz.surfaces import SURFACES

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    names = [surface.name for surface in SURFACES]
    parser.add_argument("--surface", action="append", choices=names, help="only these")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many, of all surfaces")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kept", type=Path, default="build/fuzz", help="where findings are kept")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="try a kept input again")
    options = vars(parser.parse_args())
    chosen, folder = options.pop("surface") or names, options.pop("replay")
    if folder is not None:
        again = replay(SURFACES, folder)
        print(f"{again.kind}\n{again.text}" if again else "answered well")
        return int(again is not None)
    counts, found = run([s for s in SURFACES if s.name in chosen], **options)
    kinds = Counter((finding.surface, finding.kind) for finding in found)
    for (surface, kind), count in kinds.most_common():
        print(f"{surface}: {kind} ({count} kept)")
    summary = {"inputs": counts.total(), "findings": len(kinds), "surfaces": dict(counts)}
    print(json.dumps(summary, sort_keys=True))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
