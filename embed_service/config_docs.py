"""docs/configuration.md, made from the settings themselves (`embed-service config --markdown`)."""

from __future__ import annotations

import inspect
import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from embed_service.settings import OTHERS, Settings

HEAD = """# Configuration

Every setting of the embed service is an environment variable. This page is generated from the settings themselves with
`python -m embed_service config --markdown`, and a test compares the two.

A value that cannot be used ends the start with a sentence that names the variable. A name that looks like a misspelt one of these
is refused with the nearest right name; all other variables are left alone. An empty value counts as unset. Lists are separated by
commas; booleans are `true` or `false`.
"""

OTHER_DESCRIPTIONS = {
    "HF_HOME": "Folder of the Hugging Face cache, where downloaded models are kept. Unset: `~/.cache/huggingface`.",
    "HF_TOKEN": "Hugging Face token, for gated models. `HF_TOKEN_FILE` keeps it out of `docker inspect`.",
}

_SECTION = re.compile(r"^    # (?P<title>[A-Z]\w+)$")
_FIELD = re.compile(r"^    (?P<name>[a-z]\w*): ")
_UNION_KINDS = (Union, UnionType)


def sections() -> dict[str, list[str]]:
    """Names of the settings under the comment lines that group them in the source of `Settings`, in order."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in inspect.getsource(Settings).splitlines():
        if heading := _SECTION.match(line):
            title = heading["title"]
            found[title] = []
        elif (field := _FIELD.match(line)) and field["name"] in Settings.model_fields:
            found[title].append(field["name"])
    return found


def allowed(field: FieldInfo) -> str:
    """The values that a setting takes, in words."""
    kind: Any = field.annotation
    if get_origin(kind) in _UNION_KINDS:
        kind = next(part for part in get_args(kind) if part is not NoneType)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    if get_origin(kind) is tuple:
        return "list"
    if kind is str:
        return "text"
    word = {int: "integer", float: "number"}[kind]
    signs = {"gt": "above", "ge": "at least", "le": "at most", "lt": "below"}
    bounds = [f"{sign} {getattr(limit, name)}" for limit in field.metadata for name, sign in signs.items() if hasattr(limit, name)]
    return ", ".join([word, *bounds])


def default(field: FieldInfo) -> str:
    """The default as one would write it in the environment."""
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None or value == ():
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def render() -> str:
    """The whole page as markdown."""
    parts = [HEAD]
    for title, names in sections().items():
        rows = ["| name | default | values | what |", "|---|---|---|---|"]
        for name in names:
            field = Settings.model_fields[name]
            rows.append(f"| `{name.upper()}` | {default(field)} | {allowed(field)} | {field.description} |")
        parts.append(f"## {title}\n\n" + "\n".join(rows) + "\n")
    others = [f"| `{name}` | {OTHER_DESCRIPTIONS[name]} |" for name in sorted(OTHERS)]
    parts.append("\n".join(["## Variables of Hugging Face\n\nRead by its library.\n\n| name | what |\n|---|---|", *others, ""]))
    return "\n".join(parts)
