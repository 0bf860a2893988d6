"""Thinking stays off: clients wait for a few lines and read them from `content`."""

from __future__ import annotations

import re
from typing import Any

_BLOCK = re.compile(r"\s*<think>.*?(?:</think>\s*|\Z)", re.DOTALL)


def turn_off(body: dict[str, Any]) -> bool:
    """Ask the chat template not to think, unless the client chose. True when thinking is off.

    A client chooses with `chat_template_kwargs.enable_thinking` (vLLM's form) or a plain `enable_thinking`, which becomes the former.
    """
    options = body.get("chat_template_kwargs")
    if options is not None and not isinstance(options, dict):
        return True  # the server's to refuse
    options = {"enable_thinking": bool(body.get("enable_thinking", False)), **(options or {})}
    body["chat_template_kwargs"] = options
    return not options["enable_thinking"]


def strip(answer: dict[str, Any]) -> bool:
    """Remove a leading `<think>…</think>` (also an unclosed one) from each choice's content. True when something was removed."""
    changed = False
    choices = answer.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        message = choice.get("message") if isinstance(choice, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(message, dict) and isinstance(content, str) and (block := _BLOCK.match(content)):
            message["content"] = content[block.end() :]
            changed = True
    return changed
