"""Reads YAML text, and refuses what two readers could understand differently.

PyYAML takes the last of two equal keys in silence. A value that the user looks at may then not be the one that counts.
It also takes aliases that make gigabytes of a few lines, values that contain themselves, numbers of any length, and
characters that no file can hold. Each of these would stop a later reader, which would not know the file.
"""

from collections.abc import Iterator
from typing import Any

import yaml

from tasks.system.errors import UserError

MOST_VALUES = 100_000
"""Most values in a file, where each alias counts as all that it stands for. `params.yaml` has about 300."""
MOST_DIGITS = 100
"""Most characters of a whole number. Python converts longer ones slowly, and some of them to text not at all."""


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a key that is there twice, and values that no later reader could take."""

    def get_single_node(self) -> yaml.Node | None:
        """The document as nodes. Raises yaml.composer.ComposerError if its aliases make too much of it."""
        node = super().get_single_node()
        if node is not None and _count_values(node, {}) > MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"it holds more than {MOST_VALUES} values, with its aliases")
        return node

    def construct_scalar(self, node: yaml.Node) -> Any:
        """The text of a scalar. Raises yaml.constructor.ConstructorError if no file can hold it."""
        text = super().construct_scalar(node)
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise yaml.constructor.ConstructorError(
                None, None, "a text has a NUL or half of a character", node.start_mark
            )
        return text

    def construct_yaml_int(self, node: yaml.Node) -> int:
        """A whole number. Raises yaml.constructor.ConstructorError if it is too long."""
        if isinstance(node, yaml.ScalarNode) and len(node.value) > MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number has more than {MOST_DIGITS} digits", node.start_mark
            )
        return super().construct_yaml_int(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping. Raises yaml.constructor.ConstructorError for a key that is there twice."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice: take one out", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(data: bytes | str, where: str) -> Any:
    """The value of YAML text in UTF-8, with or without a byte order mark.

    Raises UserError, naming `where`, if it is not UTF-8, is not YAML, or has a key twice.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    try:
        return yaml.load(text, _PlainLoader)
    except Exception as error:  # besides YAMLError, tags such as !!int and !!bool raise IndexError, KeyError and others
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values that a node stands for, where an alias counts as all that it repeats.

    `known` has the counts of the nodes that were met before, by their identity, and 0 for those that are being counted.
    Raises yaml.composer.ComposerError if a value contains itself.
    """
    if id(node) not in known:
        known[id(node)] = 0
        known[id(node)] = 1 + sum(_count_values(child, known) for child in _children(node))
    if known[id(node)] == 0:
        raise yaml.composer.ComposerError(None, None, "an alias stands for a value that it is a part of")
    return known[id(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    """The values that a node holds: the items of a list, the keys and values of a mapping."""
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from child if isinstance(child, tuple) else (child,)
