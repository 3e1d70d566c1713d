"""HTML from plain calls: whatever is no markup already is escaped. Names come from strangers."""

from __future__ import annotations

import html

from tintray.errors import printable


class Markup(str):
    """Text that is HTML or SVG; only :func:`element` and :func:`joined` make it."""

    __slots__ = ()


def text(content: str) -> Markup:
    """A text of whatever origin, escaped; what would change the direction of writing is shown."""
    return Markup(html.escape(printable(content)))


def joined(*children: str) -> Markup:
    """Markup as it is, and all else escaped, one after the other."""
    return Markup("".join(c if isinstance(c, Markup) else text(c) for c in children))


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element; ``class_`` is the attribute ``class``, ``stroke_width`` ``stroke-width``.

    An attribute that is None is left out. A tag of HTML without an end has no children.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(_written(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in ("meta", "br", "img"):
        return Markup(f"<{tag}{given}>")
    return Markup(f"<{tag}{given}>{joined(*children)}</{tag}>")


def _written(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"
