"""What every client's request for text must get, whatever vLLM's version."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.stack.conftest import PROMPT, QUESTION, TOKENS
from tests.support.stack_project import Stack

CHAT = [{"role": "user", "content": QUESTION}]
NAMES = ("default", "generate", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen3-4B")
NO_THINKING = "<think>\n\n</think>\n\n"
# Fields that QMD's clients send; `reasoning_effort: "none"` is refused by vLLM 0.12, so it goes through the forwarder alone.
FIELDS: list[dict[str, Any]] = [{}, {"repeat_penalty": 1.0}, {"enable_thinking": False}, {"top_k": 1}]


def right_text_under_every_name(stack: Stack, model: str, expected: dict[str, str]) -> None:
    """SmolLM2 at temperature 0: transformers' text, without `model`, with each name, with each client's fields."""
    greedy: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0}
    for name in (None, model, *NAMES):
        body = {"prompt": PROMPT, **greedy, **({"model": name} if name else {})}
        assert stack.post("vllm", "/v1/completions", **body)["choices"][0]["text"] == expected["completion"], name
    for fields in FIELDS:
        for service in ("vllm", "embed"):
            answer = stack.post(service, "/v1/chat/completions", messages=CHAT, **greedy, **fields)
            assert answer["choices"][0]["message"]["content"] == expected["chat"], (service, fields)
    answer = stack.post("embed", "/v1/chat/completions", messages=CHAT, **greedy, reasoning_effort="none")
    assert answer["choices"][0]["message"]["content"] == expected["chat"]
    assert streamed(stack, "embed") == expected["chat"]
    served = {one["id"] for one in httpx.get(f"{stack.url('vllm')}/v1/models", trust_env=False).json()["data"]}
    assert served == {model, *NAMES}


def streamed(stack: Stack, service: str) -> str:
    """The text of a streamed chat, put together from its events."""
    body = {"messages": CHAT, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    text, done = "", False
    with httpx.stream("POST", f"{stack.url(service)}/v1/chat/completions", json=body, timeout=60, trust_env=False) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
    assert done
    return text


def chat_prompt(stack: Stack, **fields: Any) -> str:
    """The text that vLLM makes of a chat, by its own /tokenize and /detokenize."""
    tokens = stack.post("vllm", "/tokenize", messages=CHAT, add_generation_prompt=True, **fields)["tokens"]
    return str(stack.post("vllm", "/detokenize", tokens=tokens)["prompt"])
