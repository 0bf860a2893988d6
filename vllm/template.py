"""The chat template to serve with: the model's own, with thinking off by default where it knows `enable_thinking`.

vLLM 0.12 has no option for a template's default variables, so a line in front of the template sets it. A request's own
`chat_template_kwargs: {"enable_thinking": true}` still wins.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

THINKING_OFF = "{%- set enable_thinking = enable_thinking | default(false) -%}\n"


def with_thinking_off(folder: Path) -> str | None:
    """The template to pass to vLLM; None where the model's own serves as it is, or there is none."""
    own = own_template(folder)
    return THINKING_OFF + own if own and "enable_thinking" in own else None


def own_template(folder: Path) -> str | None:
    """The model's template: chat_template.jinja, else the field of chat_template.json or tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            template = json.loads((folder / name).read_bytes()).get("chat_template")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(template, list):  # named ones
            template = _default(template)
        if isinstance(template, str):
            return template
    return None


def _default(named: list[Any]) -> str | None:
    entries = {entry.get("name"): entry.get("template") for entry in named if isinstance(entry, dict)}
    template = entries.get("default")
    return template if isinstance(template, str) else None
