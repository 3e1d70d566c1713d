"""Damage done to bytes and to texts: flips, cuts, lies about lengths, what editors leave behind."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from random import Random

from tests.fuzz.trees import UGLY

_SIZES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1, 2**40)
_FORMATS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")


def damaged(
    rng: Random, data: bytes, others: Sequence[bytes] = (), times: int | None = None
) -> bytes:
    """A copy of ``data`` with one or a few things done to it."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8)) if times is None else times):
        data = _once(rng, data, others)
    return data


def _once(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    size = len(data)
    at = rng.randint(0, size)
    if rng.random() < 0.3:  # where headers and trailers are
        first = rng.random() < 0.6
        near = rng.randint(0, 64)
        at = min(size, near) if first else max(0, size - near)
    action = rng.randrange(11)
    if action < 3 and size:
        at = min(at, size - 1)
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if action == 3:
        return data[:at]
    if action == 4:
        return data[:at] + data[at + rng.choice((1, 2, 4, 16, 100)) :]
    if action == 5:
        return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 16, 100))) + data[at:]
    if action == 6 and others:
        other = rng.choice(others)
        return data[:at] + other[rng.randint(0, len(other)) :]
    if action == 7:
        piece = data[at : at + rng.choice((1, 8, 64, 512))]
        return data[:at] + piece * rng.choice((2, 3, 50)) + data[at + len(piece) :]
    if action == 8:
        return data + rng.choice((b"\0" * 100, data[:200], b"\n", rng.randbytes(9)))
    form = rng.choice(_FORMATS)
    wide = struct.calcsize(form)
    lie = struct.pack(form, rng.choice(_SIZES) & (256**wide - 1))
    return data[:at] + lie + data[at + wide :]


_SNIPPETS = (
    *(*UGLY, "\t", "\r\n", "\n\n", "\x85", "\u2029", "'", '"', '""', "\\", "\\u0000", ",", ",,"),
    *(":", ": ", "#", "- ", "&a ", "*a", "!!", "|", ">", "{", "}", "[", "]", "%", "@", "`", "~"),
    *("null", "NaN", "-Infinity", "1e999", "0x1F", "1_000", "9" * 400, "9" * 5000, "=", "\ufeff"),
    *("�", "א", "🙂"),
)


def damaged_text(
    rng: Random, text: str, snippets: Sequence[str] = (), times: int | None = None
) -> bytes:
    """A copy of ``text`` with one or a few things done to it, in some encoding."""
    for _ in range(rng.choice((1, 1, 2, 2, 3, 6)) if times is None else times):
        text = _text_once(rng, text, snippets)
    encoding = "utf-8" if rng.random() < 0.95 else rng.choice(("utf-16", "utf-8-sig", "utf-32-be"))
    return text.encode(encoding, "surrogatepass")


def _text_once(rng: Random, text: str, snippets: Sequence[str]) -> str:
    at = rng.randint(0, len(text))
    action = rng.randrange(10)
    lines = text.split("\n")
    number = rng.randrange(len(lines))
    if action < 4:
        known = snippets if snippets and rng.random() < 0.6 else _SNIPPETS
        return text[:at] + rng.choice(known) + text[at:]
    if action == 4:
        return text[:at] + text[at + rng.choice((1, 2, 5, 30)) :]
    if action in (5, 6):  # one less, or one twice
        return "\n".join([*lines[: number + action - 5], *lines[number + 6 - action :]])
    if action == 7:
        other = rng.randrange(len(lines))
        lines[number], lines[other] = lines[other], lines[number]
        return "\n".join(lines)
    if action == 8:
        lines[number] = rng.choice((" ", "   ", "\t", "- ")) + lines[number]
        return "\n".join(lines)
    aliased = text.replace(":", ": &a", 1).replace(", ", ": *a, ", 1)
    ends = [text.replace("\n", end) for end in ("\r\n", "\r")]
    return rng.choice((text[:at], *ends, text.replace(" ", "\u00a0", 3), text + text, aliased))


def zeros_deflated(mebibytes: int) -> bytes:
    """A raw deflate stream of so many MiB of zeros, a thousandth as large."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packer.compress(b"\0")
    packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b"\0" * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * mebibytes + b"\x03\x00"  # an empty last block


def gzip_bomb(mebibytes: int, start: bytes = b"") -> bytes:
    """A gzip file of ``start`` and so many MiB of zeros; it says nothing of its size."""
    first = gzip.compress(start, 9) if start else b""
    head = b"\x1f\x8b\x08" + b"\0" * 6 + b"\x03"
    return first + head + zeros_deflated(mebibytes) + b"\0" * 8


def packed(rng: Random, data: bytes) -> bytes:
    """``data`` as a gzip file, mostly a sound one."""
    found = gzip.compress(data, rng.choice((0, 1, 9)))
    action = rng.randrange(8)
    if action == 2:
        return damaged(rng, found)
    return {0: gzip.compress(found), 1: found + found, 3: data}.get(action, found)
