"""Make a zoo: a pretrained model, its experts and their data.

python -m benchmarks.zoos halves zoo/halves --data ../shared   # with zoo/base and data/vision
python -m benchmarks.zoos omniglot zoo/omniglot --data omniglot.npz [--tasks N] [--lora RANK]
python -m benchmarks.zoos scenes zoo/scenes [--data FOLDER]    # with camvid64.npz and fasseg64.npz
python -m benchmarks.zoos scripts zoo/scripts --data data/vision
python -m benchmarks.zoos text zoo/text [--data ../shared/data/text]

A finished zoo is not made again. ``examples/digits.py`` makes that of the demo.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from tintray.errors import TintrayError

_ZOOS = ("halves", "omniglot", "scenes", "scripts", "text")
_TEXTS = Path("../shared/data/text")


def main() -> int:
    """Make the zoo that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("zoo", choices=_ZOOS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--data", type=Path, help="what the zoo is made from")
    parser.add_argument("--tasks", type=int, help="of omniglot: only so many of the 200")
    parser.add_argument("--lora", type=int, help="of omniglot: adapters of this rank, not models")
    given = parser.parse_args()
    data = given.data or (_TEXTS if given.zoo == "text" else None)
    options = {name: getattr(given, name) for name in ("tasks", "lora") if getattr(given, name)}
    if options and given.zoo != "omniglot":
        parser.error(f"--{next(iter(options))} is an option of omniglot")
    if data is None and given.zoo in ("halves", "omniglot", "scripts"):
        parser.error(f"{given.zoo} needs --data")
    try:
        build = import_module(f"benchmarks.zoos.{given.zoo}").build
        data = () if data is None else (data,)
        print(build(given.directory, *data, on_progress=_say, **options))
    except TintrayError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
