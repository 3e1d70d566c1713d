"""Pictures: files of every form that lie about their size, end early, or unfold into gigabytes."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

from PIL import Image

from tests.fuzz import raw
from tests.fuzz.surface import Bench, Files, Surface
from tests.fuzz.surfaces.reading import examples, pool, validated

_SUFFIX = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "BMP": "bmp", "WEBP": "webp", "TIFF": "tif"}
_EDGES = (0, 1, 15, 16, 4000, 12_000, 30_000, 65_535, 2**31 - 1, 2**32 - 1)


def png(
    width: int, height: int, *, mode: int = 2, depth: int = 8, data: bytes | None = None
) -> bytes:
    """A PNG file; ``data`` are its deflated rows, gray ones if left out."""
    if data is None:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(mode, 1)
        row = b"\0" + b"\x80" * ((width * channels * depth + 7) // 8)
        data = zlib.compress(row * height)
    head = struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@cache
def _sound(form: str, mode: str = "RGB") -> bytes:
    image = Image.linear_gradient("L").resize((16, 16)).convert(mode)
    held = io.BytesIO()
    image.save(held, form)
    return held.getvalue()


def _seeds(_: Path) -> list[Files]:
    return [
        {f"data/{label}/x.{suffix}": _sound(form) for label in ("zero", "one", "two")}
        for form, suffix in _SUFFIX.items()
    ]


def _mutate(rng: Random, files: Files, seeds: Sequence[Files]) -> Files:
    others = [content for seed in seeds for content in seed.values()]
    name = rng.choice(list(files))
    if rng.random() < 0.5 and name.endswith(".png"):
        content = _damaged_png(rng)
    elif rng.random() < 0.15:
        content = _sound("PNG", rng.choice(("1", "L", "LA", "P", "RGBA", "I;16")))
    elif rng.random() < 0.1:
        content = _sound("TIFF", rng.choice(("F", "I", "CMYK", "YCbCr", "LAB", "I;16", "1", "P")))
    else:
        content = raw.damaged(rng, files[name], others)
    changed = {**files, name: content}
    if rng.random() < 0.1:
        other = rng.choice(("x", "data/x.png", "data/one/y.png/z.png", "data/\x1b[31m/x.png"))
        changed[other] = content
    if rng.random() < 0.02:
        changed |= {f"data/one/{n}.png": content for n in range(12)}
    return changed


def _damaged_png(rng: Random) -> bytes:
    action = rng.randrange(6)
    mode, depth = rng.choice((0, 2, 3, 4, 6, 1, 9)), rng.choice((1, 2, 4, 8, 16, 3))
    if action == 0:  # a small file that unfolds
        edge = rng.choice((4000, 9000, 13_000))
        rows = raw.zeros_deflated((edge * edge // 8 >> 20) + 2)
        return png(edge, edge, mode=rng.choice((0, 3)), depth=1, data=b"\x78\xda" + rows)
    if action == 1:
        return png(rng.choice(_EDGES), rng.choice(_EDGES), mode=mode, depth=depth, data=b"x")
    sound = png(16, 16, mode=rng.choice((0, 2, 6)))
    if action == 2:  # a text that unfolds
        kind = rng.choice((b"zTXt", b"iCCP"))
        bomb = _chunk(kind, b"a\0\0\x78\xda" + raw.zeros_deflated(rng.choice((1, 70, 1500))))
        return sound[:33] + bomb + sound[33:]
    if action == 3:
        names = (b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf", b"tEXt", b"IHDR", b"\x1b[3m", b"gAMA")
        extra = _chunk(rng.choice(names), rng.randbytes(rng.choice((0, 1, 8, 26, 300))))
        return sound[:33] + extra + sound[33:]
    if action == 4:
        return png(16, 16, mode=mode, depth=depth)
    return raw.damaged(rng, sound)


def _in_rows(bench: Bench) -> None:
    """The same files, named by the rows of a table; and as bytes, which JSON has none of."""
    paths = sorted(path for path in bench.folder.rglob("*") if path.is_file())
    rows = [{"image": str(path.relative_to(bench.folder)), "label": 1} for path in paths]
    text = base64.b64encode(paths[0].read_bytes()[:2000]).decode()
    (bench.folder / "t.json").write_text(json.dumps([*rows, {"image": text, "label": 0}]))
    examples("t.json", max_bad=1)(bench)


_DRIVES = {"examples": (75, examples("data")), "some bad": (10, examples("data", max_bad=1))}
_DRIVES |= {"pool": (8, pool("data")), "rows": (5, _in_rows), "validate": (2, validated("data"))}
SURFACE = Surface("images", 9, _seeds, _mutate, _DRIVES)
