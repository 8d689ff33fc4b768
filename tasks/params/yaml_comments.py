"""The comments of `params.yaml`: `python -m tasks.params.yaml_comments` writes them from the docstrings of the params.

A param is explained once, by the string below its field in `tasks.params`. The comment beside its key in `params.yaml`
is the first sentence of that string. Values, order and comments on lines of their own stay as they are.
"""

import ast
import inspect
import re
import textwrap
import typing
from itertools import pairwise

from tasks.params.experiment_params import Params
from tasks.params.params_files import PARAMS_FILE, load_params
from tasks.system.files import write_bytes

COLUMN = 30
"""Where a comment begins, counted from 0, unless the value needs more room."""
LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>.*?)(?P<comment>\s+#.*)?")


def field_docstrings(section: type) -> dict[str, str]:
    """The string below each field of a dataclass, by the field's name; inherited fields are among them."""
    docstrings: dict[str, str] = {}
    for cls in reversed(section.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for field, below in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                docstrings[field.target.id] = inspect.cleandoc(below.value.value)
    return docstrings


def first_sentence(docstring: str) -> str:
    """A docstring up to its first full stop, which is taken off."""
    return re.split(r"\.\s", " ".join(docstring.split()) + " ", maxsplit=1)[0]


def param_docstrings() -> dict[str, str]:
    """The docstring of every section (`grow`) and key (`grow.depth`) of `params.yaml`."""
    docstrings = field_docstrings(Params)
    for name, section in typing.get_type_hints(Params).items():
        docstrings |= {f"{name}.{key}": text for key, text in field_docstrings(section).items()}
    return docstrings


def with_comments(text: str) -> str:
    """The text of a `params.yaml` with the comment of each section and key written anew."""
    docstrings, section, lines = param_docstrings(), "", []
    for line in text.splitlines():
        found = LINE.fullmatch(line)
        if found is None:
            lines.append(line)
            continue
        if not found["indent"]:
            section = found["key"]
        name = f"{section}.{found['key']}" if found["indent"] else section
        assignment = f"{found['indent']}{found['key']}:{found['value']}"
        lines.append(f"{assignment:<{COLUMN - 2}}  # {first_sentence(docstrings[name])}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the comments of the `params.yaml` in the working directory. Raises UserError if it does not load."""
    load_params()
    write_bytes(PARAMS_FILE, with_comments(PARAMS_FILE.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
