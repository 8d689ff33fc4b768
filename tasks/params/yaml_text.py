"""Reads YAML text, and refuses what two readers could understand differently.

PyYAML takes the last of two equal keys in silence. A value that the user looks at may then not be the one that counts.
"""

from typing import Any

import yaml

from tasks.system.errors import UserError


class _UniqueKeys(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a mapping that has a key twice."""

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
        return yaml.load(text, _UniqueKeys)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: an impossible date, deep nesting
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
