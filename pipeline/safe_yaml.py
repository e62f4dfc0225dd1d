"""Reading of YAML from any source: plain values only, and aliases that do not multiply the content.

A few hundred bytes with nested aliases stand for gigabytes, which exist as soon as the content is
merged, copied or printed.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import CollectionNode, Node

MAX_ADDED_BY_ALIASES = 2**20  # characters of values, plus one per value


class YamlError(ValueError):
    """The text is not valid YAML, or its aliases exceed the limit; the message is one line."""


def load_yaml(text: str | bytes) -> Any:
    """Return the content of a YAML document, None if it is empty. Raises YamlError."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            # Without aliases the content is at most twice as large as the text.
            if _expanded_size(node, {}) > 2 * len(text) + MAX_ADDED_BY_ALIASES:
                raise YamlError(
                    f"its aliases (*name) stand for more than {MAX_ADDED_BY_ALIASES} characters; "
                    "write the values out"
                )
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise YamlError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: numbers, dates, encodings
        raise YamlError(" ".join(str(error).split())) from None


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
