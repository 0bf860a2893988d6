"""Single-URL mode in front of a real server: the answers are the model's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.service import ServiceProcess
from tests.support.smollm2 import GenerationServer
from tests.support.wire import assert_error

QUESTION = "What is the capital of France?"
TOKENS = 12


@pytest.fixture(scope="module")
def greedy(smollm2: Path) -> Iterator[Callable[[Any], str]]:
    """What transformers itself generates, greedily, after a chat (list) or a raw prompt (string)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the server has
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)

    def generate(prompt: Any) -> str:
        chat = isinstance(prompt, list)
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False) if chat else prompt
        ids = tokenizer(text, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))

    yield generate
    torch.set_num_threads(threads)


def chat(client: httpx.Client, content: str = QUESTION, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    return client.post(path, json={"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": TOKENS, **fields})


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions", "/v1/v1/chat/completions/"])
def test_a_chat_is_the_models_own(forwarding: httpx.Client, greedy: Callable[[Any], str], path: str) -> None:
    expected = greedy([{"role": "user", "content": QUESTION}])
    assert "Paris" in expected
    assert said(chat(forwarding, path=path)) == expected


def test_a_completion_is_the_models_own(forwarding: httpx.Client, greedy: Callable[[Any], str]) -> None:
    prompt = "The three primary colours are"
    answer = forwarding.post("/v1/completions", json={"prompt": prompt, "temperature": 0, "max_tokens": TOKENS})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == greedy(prompt)


@pytest.mark.parametrize("model", ["default", "generate", "Qwen/Qwen3-4B", ""])
def test_any_model_name_is_answered(forwarding: httpx.Client, model: str) -> None:
    assert "Paris" in said(chat(forwarding, model=model))


@pytest.mark.parametrize(
    "fields",
    [
        {"repeat_penalty": 1.1},
        {"enable_thinking": False, "top_k": 20, "top_p": 0.8},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"repeat_penalty": 1.1, "enable_thinking": False, "top_k": 20, "reasoning_effort": "none", "min_p": 0.05, "user": "qmd"},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_fields_that_the_server_refuses_are_dropped(forwarding: httpx.Client, fields: dict[str, Any]) -> None:
    assert "Paris" in said(chat(forwarding, **fields))


def test_a_refusal_is_remembered_and_told(forwarding: httpx.Client, generation: GenerationServer) -> None:
    assert chat(forwarding, repetition_penalty=1.2).headers["x-dropped-fields"] == "repetition_penalty"
    refused = generation.log.read_text().count(" 422 ")
    assert refused > 0
    answer = chat(forwarding, repetition_penalty=1.3)
    assert "Paris" in said(answer)
    assert answer.headers["x-dropped-fields"] == "repetition_penalty"
    assert generation.log.read_text().count(" 422 ") == refused
    assert "x-dropped-fields" not in chat(forwarding).headers


def test_no_think_and_broken_unicode_in_the_prompt(forwarding: httpx.Client) -> None:
    content = r'{"messages": [{"role": "user", "content": "/no_think What is the capital of France? \ud83d"}], "max_tokens": 8}'
    answer = forwarding.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert said(answer)
    assert "<think>" not in said(answer)


def test_a_stream_through_the_openai_sdk(forwarding: httpx.Client) -> None:
    whole = said(chat(forwarding))
    with openai.OpenAI(base_url=f"{forwarding.base_url}/v1", api_key="any") as sdk:
        stream = sdk.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=TOKENS, stream=True
        )
        pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 1
    assert "".join(pieces) == whole


def test_a_stream_of_a_completion(forwarding: httpx.Client) -> None:
    body = {"prompt": "One, two, three,", "temperature": 0, "max_tokens": 8}
    whole = forwarding.post("/v1/completions", json=body).json()["choices"][0]["text"]
    with openai.OpenAI(base_url=f"{forwarding.base_url}/v1", api_key="any") as sdk:
        stream = sdk.completions.create(model="any", stream=True, **body)
        assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == whole


def test_what_the_request_lacks_is_named(forwarding: httpx.Client) -> None:
    assert_error(forwarding.post("/v1/chat/completions", json={"model": "x"}), 400, "messages")
    assert_error(forwarding.post("/v1/chat/completions", json={"messages": []}), 400, "messages")
    assert_error(forwarding.post("/v1/completions", json={}), 400, "prompt")
    assert_error(forwarding.post("/v1/completions", json=[]), 400)
    assert_error(forwarding.post("/v1/completions", content="{", headers={"content-type": "application/json"}), 400, "JSON")


def test_without_a_server_configured(service: ServiceProcess) -> None:
    with service.client() as client:
        assert_error(chat(client), 404, "GENERATION_URL")
        assert_error(client.post("/v1/completions", json={"prompt": "x"}), 404, "GENERATION_URL")


def test_a_killed_server_and_its_return(smollm2: Path, start: Callable[..., ServiceProcess], tmp_path: Path) -> None:
    first = GenerationServer(smollm2, tmp_path / "generation.log").start()
    try:
        first.wait_ready()
        with start(GENERATION_URL=first.url).client() as client:
            assert "Paris" in said(chat(client))
            body = {"messages": [{"role": "user", "content": "Count to one hundred."}], "temperature": 0, "max_tokens": 500, "stream": True}
            with client.stream("POST", "/v1/chat/completions", json=body) as stream:
                lines = stream.iter_lines()
                assert next(lines).startswith("data: ")
                first.kill()
                rest = list(lines)
            assert any("GENERATION_URL" in line for line in rest)  # the stream's last event says why it ended
            assert_error(chat(client), 503, "GENERATION_URL")
            with GenerationServer(smollm2, tmp_path / "again.log", first.port) as again:
                again.wait_ready()
                assert "Paris" in said(chat(client))
    finally:
        first.__exit__(None, None, None)
