"""What reading foreign files may take: the budgets, and the folders that data may name files in.

A budget is checked from headers and sizes, before the memory is taken; what cannot be told from
those runs in a process of its own, which is ended after ``max_seconds``. Each is a setting of the
configuration file under its own name here. ``Limits`` travel with the orders that they bound, so
workers keep the budgets of the process that runs the job.
"""

from __future__ import annotations

import re
import reprlib
from dataclasses import dataclass
from typing import Literal

_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True)
class Limits:
    """Budgets of what is read; each is told with its field's name where it is exceeded."""

    max_pool_bytes: int = 4 * _GIB  # of memory for a pool or test set, as read and as prepared
    max_examples: int = 2_000_000  # of one of these, and rows of a table that are read for them
    max_text_bytes: int = 2 * _GIB  # of a csv, tsv, json or jsonl table, once decompressed
    max_line_bytes: int = 8 * _MIB  # of one example of such a table
    max_image_bytes: int = 64 * _MIB  # of one image file, as it is stored
    max_image_pixels: int = 64 * _MIB  # of one image, before it is resized
    max_yaml_bytes: int = 2 * _MIB  # of a job file, or a mergekit file
    max_yaml_nodes: int = 100_000  # values and keys of one; an alias counts as what it stands for
    max_yaml_depth: int = 64  # of its sections and lists within one another
    max_seconds: int = 60  # that somebody else's tokenizer may compute over one pool or test set
    data_roots: tuple[str, ...] = ()  # more folders that a table may name image files in


DEFAULTS = Limits()


def size_text(count: float) -> str:
    """A number of bytes as people write it: ``512 MiB``, ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if count == int(count) or count >= 100 else f"{count:,.1f} {unit}"


_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]i?b|b)", re.IGNORECASE)
_UNITS = {"b": 1} | {
    f"{letter}{suffix}": base ** (power + 1)
    for power, letter in enumerate("kmgt")
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def memory_bytes(value: object) -> int:
    """Bytes from a number or a text such as ``2GiB``."""
    if type(value) is int and value > 0:
        return value
    found = _MEMORY.fullmatch(value.strip()) if isinstance(value, str) else None
    size = float(found[1]) * _UNITS[found[2].lower()] if found else 0.0
    if 1 <= size < 2**63:
        return int(size)
    raise ValueError(
        f"expected an amount of memory such as 512MiB or 2GiB, found {reprlib.repr(value)}"
    )


_SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")
_COUNT = re.compile(r"(\d[\d_,]*) numbers?")


@dataclass(frozen=True)
class Budget:
    """The most that a task may own: so many bytes, a share of the backbone's, or numbers."""

    amount: float
    unit: Literal["share", "bytes", "numbers"]

    def of(self, parameters: int) -> float:
        """The same in bytes, or in numbers, beside a backbone of so many float32 parameters."""
        return self.amount * 4 * parameters if self.unit == "share" else self.amount

    def told(self, amount: float, parameters: int) -> str:
        """So many bytes, or numbers, in the unit that the budget was written in."""
        if self.unit == "numbers":
            return f"{amount:,.0f} numbers"
        if self.unit == "share":
            return f"{100 * amount / 4 / parameters:.3g}% ({size_text(amount)})"
        return size_text(amount)


def parse_budget(text: str) -> Budget:
    """A budget from ``0.5%``, ``300KiB`` or ``2000 numbers``; ``ValueError`` if it is none."""
    text = text.strip()
    if (share := _SHARE.fullmatch(text)) and 0 < float(share[1]) <= 100:
        return Budget(float(share[1]) / 100, "share")
    if (count := _COUNT.fullmatch(text)) and (number := int(re.sub("[_,]", "", count[1]))) > 0:
        return Budget(number, "numbers")
    return Budget(memory_bytes(text), "bytes")
