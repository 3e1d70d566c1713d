"""YAML from outside as plain values: texts, numbers, truth values, lists and mappings.

PyYAML keeps the last of two equal keys, follows YAML 1.1 (``1e-3`` is a text, ``1:30`` is ninety,
``2024-01-01`` a date) and has no bound on time or memory. This loader refuses equal keys, reads
numbers as YAML 1.2 does, and counts what a text asks for before it is made.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable
from typing import Any

import yaml

from tintray.limits import DEFAULTS, Limits

_TAG = "tag:yaml.org,2002:"
_LONGEST_NUMBER = 100  # characters; a longer one takes long to convert and cannot be shown
_RESOLVED = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", None),
    "int": (r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+", None),
    "float": (
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        None,
    ),
    "merge": (r"<<", ["<"]),
}


def parse_yaml(text: str, limits: Limits = DEFAULTS) -> tuple[yaml.Node | None, Any]:
    """The one document in ``text``: its nodes, which know their lines, and its value.

    A ``yaml.YAMLError`` if it is not YAML, has more than one document, has two equal keys in one
    mapping, contains itself, has control characters, or asks for more than ``limits`` allow.
    """
    if len(text) > limits.max_yaml_bytes:
        raise yaml.YAMLError(f"it has more than {limits.max_yaml_bytes:,} characters")
    loader = _Loader(text, limits)
    try:
        root = loader.get_single_node()
        return root, None if root is None else loader.construct_document(root)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        # what PyYAML's scanner and constructors let through, such as "\UFFFFFFFF"
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise yaml.YAMLError(said) from error
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """SafeLoader with budgets, of YAML 1.2's core values only."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's own is not inherited

    def __init__(self, text: str, limits: Limits) -> None:
        super().__init__(text)
        self._limits = limits
        self._nodes = self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}  # of finished nodes, aliases expanded
        self._heights: dict[yaml.Node, int] = {}

    # -- the scanner: its time grows with the square of the depth ----------------------------------

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803  # as PyYAML has it
        """``[`` or ``{``."""
        self._check_depth(self.flow_level)
        super().fetch_flow_collection_start(TokenClass)

    def add_indent(self, column: int) -> bool:
        """A block that is indented further."""
        self._check_depth(len(self.indents))
        return bool(super().add_indent(column))

    def _check_depth(self, depth: int, node: yaml.Node | None = None) -> None:
        if depth > self._limits.max_yaml_depth:
            problem = f"it is nested too deeply, beyond {self._limits.max_yaml_depth}"
            raise _refusal(problem, node.start_mark if node else self.get_mark())

    # -- the composer: nodes are counted as they are made, and again wherever an alias stands ------

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node, or the one that an alias names."""
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        before = self._nodes
        self._depth += 1
        self._count(1, mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return node
        if not alias:
            self._sizes[node] = self._nodes - before
            self._heights[node] = _height(node, self._heights)
        elif node not in self._sizes:
            raise _refusal("an alias stands within itself", mark)
        else:
            self._count(self._sizes[node], mark)
        self._check_depth(self._depth + self._heights[node], node)
        return node

    def _count(self, more: int, mark: yaml.Mark) -> None:
        self._nodes += more
        if self._nodes > self._limits.max_yaml_nodes:
            problem = f"it has more than {self._limits.max_yaml_nodes:,} values, aliases expanded"
            raise _refusal(problem, mark)

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """A text or a number."""
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        resolved = self.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        _check_scalar(node, resolved)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping as written: equal keys show here, before ``<<`` has added its own."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        _refuse_duplicates(node)
        return node

    # -- the constructor ---------------------------------------------------------------------------

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """A whole number; the resolver has seen that it is one."""
        text = node.value.replace("_", "")
        return int(text, 0) if text[:2] in ("0x", "0o", "0b") else int(text)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node."""
        if node.tag not in _CONSTRUCTED:
            raise _refusal(f"the tag '{node.tag}' is not read here", node.start_mark)
        return super().construct_object(node, deep)


_CONSTRUCTED = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
for _name, (_pattern, _first) in _RESOLVED.items():
    _first = _first or sorted({*"-+.0123456789"} if _name in ("int", "float") else {*"yYnNtTfFoO"})
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_int)


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, mark)


def _height(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many levels lie below a node."""
    if isinstance(node, yaml.ScalarNode):
        return 0
    pairs = isinstance(node, yaml.MappingNode)
    below = [item for pair in node.value for item in pair] if pairs else node.value
    return 1 + max((known[item] for item in below), default=0)


def _check_scalar(node: yaml.ScalarNode, resolved: str) -> None:
    """Refuse a number that is none, or too long to be one, and characters that no field needs."""
    problem = None
    if node.tag in _CONSTRUCTED and node.tag not in (f"{_TAG}str", resolved):
        whole_as_float = (node.tag, resolved) == (f"{_TAG}float", f"{_TAG}int")
        if not whole_as_float or node.value[:2] in ("0x", "0o", "0b"):
            problem = f"expected what the tag '{node.tag}' says, found {node.value[:40]!r}"
    if node.tag in (f"{_TAG}int", f"{_TAG}float") and len(node.value) > _LONGEST_NUMBER:
        problem = f"a number of {len(node.value):,} digits"
    for character in node.value:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r\x85":
            problem = f"the control character U+{ord(character):04X} in a text"
    if problem:
        raise _refusal(problem, node.start_mark)


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    seen: dict[Hashable, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            problem = "expected a name before ':', found a list or a section"
            raise _refusal(problem, key.start_mark)
        if key.value in seen:
            problem = f"the key '{key.value}' is already on line {seen[key.value]}"
            raise _refusal(problem, key.start_mark)
        seen[key.value] = key.start_mark.line + 1
