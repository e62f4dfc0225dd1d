"""Reading of YAML from any source: plain values only, and aliases that do not multiply the content.

A few hundred bytes with nested aliases stand for gigabytes, which exist as soon as the content is
merged, copied or printed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import yaml
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

MAX_ADDED_BY_ALIASES = 2**20  # characters of values, plus one per value
_PREFIX = "tag:yaml.org,2002:"
_TEXT = f"{_PREFIX}str"
# Types that plain text is given by its look: no, 007, 12:30, 2020-01-01, null.
_GUESSED = {f"{_PREFIX}{kind}" for kind in ("bool", "int", "float", "timestamp", "null", "value")}


class YamlError(ValueError):
    """The text is not valid YAML, or its aliases exceed the limit; the message is one line."""


def load_yaml(text: str | bytes, text_below: Collection[str] = ()) -> Any:
    """Return the content of a YAML document, None if it is empty. Raises YamlError.

    Below the top-level keys ``text_below``, scalars are text as written, so that ``no``, ``007``
    and ``null`` are names, and a key may not be repeated.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            # Without aliases the content is at most twice as large as the text.
            loader.check_added(_expanded_size(node, {}))
            if isinstance(node, MappingNode):
                for key, value in node.value:
                    if isinstance(key, ScalarNode) and key.value in text_below:
                        _keep_text(value, set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: numbers, dates, encodings
        raise YamlError(" ".join(str(error).split())) from None


class _Loader(yaml.SafeLoader):
    """A loader that stops at the first alias that is too much, before it reads the others."""

    def __init__(self, text: str | bytes) -> None:
        super().__init__(text)
        self._limit, self._added = 2 * len(text) + MAX_ADDED_BY_ALIASES, 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Return the next node."""
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if alias and node is not None:
            self._added += _expanded_size(node, self._sizes)
            self.check_added(self._added)
        return node

    def check_added(self, size: int) -> None:
        """Raise YamlError if a size is over the limit."""
        if size > self._limit:
            raise YamlError(
                f"its aliases (*name) stand for more than {MAX_ADDED_BY_ALIASES} characters; "
                "write the values out"
            )


def _keep_text(node: Node, seen: set[int]) -> None:
    """Make the scalars of a node text. Raises YamlError if a key is repeated."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, ScalarNode) and node.tag in _GUESSED:
        node.tag = _TEXT
    elif isinstance(node, MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, ScalarNode)]
        if len(keys) > len(set(keys)):
            (repeated, _), *_ = Counter(keys).most_common(1)
            raise YamlError(f"line {node.start_mark.line + 1}: the key {repeated} is repeated")
    if isinstance(node, CollectionNode):
        for part in node.value:
            for one in part if isinstance(part, tuple) else (part,):
                _keep_text(one, seen)


def _expanded_size(node: Node, known: dict[int, int]) -> int:
    """Return the size of a node with each alias replaced by its content. Raises YamlError.

    ``known`` has the sizes of finished nodes by id, and 0 for the nodes around this one.
    """
    size = known.get(id(node))
    if size == 0:
        line = node.start_mark.line + 1
        raise YamlError(f"line {line}: the value contains an alias of itself")
    if size is None:
        known[id(node)] = 0
        size = 1
        if isinstance(node, CollectionNode):
            for part in node.value:  # a value, or a pair of key and value
                pair = part if isinstance(part, tuple) else (part,)
                size += sum(_expanded_size(one, known) for one in pair)
        else:
            size += len(node.value)
        known[id(node)] = size
    return size
