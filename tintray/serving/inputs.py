"""What a request holds, as the expert's own processor or tokenizer prepares it for a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from tintray.data.images import as_images, decode
from tintray.data.source import DataSource
from tintray.errors import DataError, TintrayError
from tintray.files import foreign
from tintray.pools.images import check_resized, processed
from tintray.pools.tokens import tokenized
from tintray.tasks.kind import Kind

MAX_CHARACTERS = 100_000
"""Of one text; what is beyond the model's tokens is cut off, as it is in pools."""

Form = Literal["image", "text", "words"]
"""What a task's examples are: an image, a text (or a pair of texts), or a list of words."""


@dataclass(frozen=True)
class Prepared:
    """One example as a model takes it: each tensor has one row."""

    inputs: dict[str, Tensor]
    mask: Tensor | None = None  # bool [1, S] where tokens count

    @property
    def signature(self) -> tuple[Any, ...]:
        """What has to be the same for two examples to share a batch; texts are padded."""
        return tuple(
            (name, t.dtype, t.shape[1:] if t.ndim != 2 else None) for name, t in self.inputs.items()
        )


@dataclass(frozen=True)
class Preparation:
    """How the examples of one or more tasks are prepared."""

    processor: Any  # an image processor, a tokenizer, or None
    kind: Kind
    form: Form
    source: DataSource = field(default_factory=lambda: DataSource("the request"))
    prefix: str = ""  # what the pool had before each text
    max_length: int | None = None  # tokens that a text is cut to; None is what the model takes
    max_characters: int = MAX_CHARACTERS

    def prepare(self, values: Sequence[Any]) -> list[Prepared | TintrayError]:
        """Each example, or what is wrong with it; the others are none the worse for that."""
        found: list[Any] = []
        for value in values:
            try:
                found.append(self._read(value))
            except TintrayError as error:
                found.append(error)
        good = [n for n, value in enumerate(found) if not isinstance(value, TintrayError)]
        for number, made in zip(good, self._made([found[n] for n in good]), strict=True):
            found[number] = made
        return found

    def _read(self, value: Any) -> Any:
        """What the request holds, as an array or as texts."""
        if self.form != "image":
            return self._texts(value)
        if isinstance(value, str):
            raise DataError("expected an image (bytes of a file, or an array), found a text")
        if hasattr(value, "convert"):  # Pillow's
            value = np.asarray(value.convert("RGB"))
        with foreign("the image cannot be read", DataError):
            if isinstance(value, bytes | bytearray):
                image = decode(bytes(value), self.source)
            else:
                image = as_images(_array(value)[None], "the image")[0]
        pixels, most = image.shape[0] * image.shape[1], self.source.limits.max_image_pixels
        if not 0 < pixels <= most:
            raise DataError(f"the image has {pixels:,} pixels; expected 1 to {most:,}")
        if self.processor is not None:
            check_resized([image], self.processor, self.source, "the image")
        return image

    def _texts(self, value: Any) -> Any:
        words = self.form == "words"
        parts = [value] if isinstance(value, str) and not words else value
        what = "a list of words" if words else "a text, or a pair of texts"
        if isinstance(parts, str) or not isinstance(parts, Sequence) or not parts:
            raise DataError(f"expected {what}, found {type(value).__name__}")
        if not all(isinstance(part, str) for part in parts) or (not words and len(parts) > 2):
            raise DataError(f"expected {what}, found {value!r:.60}")
        if (length := sum(map(len, parts))) > self.max_characters:
            raise DataError(
                f"the text has {length:,} characters, and a text may have {self.max_characters:,}"
            )
        try:
            json.dumps(parts, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError("the text holds half of a surrogate pair, which no text can") from error
        first = parts[0] if words else self.prefix + parts[0]
        return [first, *parts[1:]]

    def _made(self, values: list[Any]) -> list[Prepared | TintrayError]:
        """All at once, or one by one where that fails: then it is known which one is bad."""
        if not values:
            return []
        try:
            return self._together(values)
        except TintrayError as error:
            if len(values) == 1:
                return [error]
        return [one for value in values for one in self._made([value])]

    def _together(self, values: list[Any]) -> list[Prepared | TintrayError]:
        if self.form == "image":
            with foreign("the expert's image processor cannot prepare the image", DataError):
                inputs = processed(values, self.processor)
                return [Prepared({k: t[n : n + 1] for k, t in inputs.items()})
                        for n in range(len(values))]  # fmt: skip
        known = (self.processor, self.kind, self.max_length)
        with foreign("the expert's tokenizer cannot read the text", DataError):
            return [Prepared(*tokenized(_columns(value, self.form), *known)) for value in values]


def _columns(parts: list[str], form: Form) -> Mapping[str, Any]:
    if form == "words":
        return {"tokens": [parts]}
    return {name: [part] for name, part in zip(("text", "text_pair"), parts, strict=False)}


def _array(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype == np.int64 and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)  # a JSON list of bytes
    return array
