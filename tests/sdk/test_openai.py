"""The `openai` package, which asks for base64 unless told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.support.service import ServiceProcess
from tests.support.texts import LONE_HIGH, prose
from tests.support.wire import close, embed

TEXTS = ["one note", prose(90, 1), "", "caf\u00e9 \u65e5\u672c\u8a9e"]


@pytest.fixture(scope="module")
def sdk(service: ServiceProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk-anything", max_retries=0) as sdk:
        yield sdk


@pytest.mark.parametrize("model", ["text-embedding-3-small", "default", "Qwen/Qwen3-Embedding-4B"])
def test_vectors_are_those_of_raw_http(sdk: openai.OpenAI, raw: httpx.Client, model: str) -> None:
    answer = sdk.embeddings.create(model=model, input=TEXTS)
    assert [d.index for d in answer.data] == [0, 1, 2, 3]
    assert close([d.embedding for d in answer.data], embed(raw, TEXTS))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_float_is_base64(sdk: openai.OpenAI) -> None:
    bits, floats = (sdk.embeddings.create(model="x", input=TEXTS, **fields).data for fields in ({}, {"encoding_format": "float"}))
    assert close([b.embedding for b in bits], [f.embedding for f in floats])


def test_a_single_string_and_ids(sdk: openai.OpenAI, raw: httpx.Client) -> None:
    ids = raw.post("/tokenize", json={"input": "one note"}).json()["tokens"]
    for value in ("one note", ids, [ids]):
        assert close(sdk.embeddings.create(model="x", input=value).data[0].embedding, embed(raw, "one note")[0])


def test_dimensions(sdk: openai.OpenAI, raw: httpx.Client) -> None:
    answer = sdk.embeddings.create(model="x", input=TEXTS, dimensions=64)
    assert close([d.embedding for d in answer.data], embed(raw, TEXTS, dimensions=64))


def test_extra_fields(sdk: openai.OpenAI, raw: httpx.Client) -> None:
    text = prose(400, 2)
    answer = sdk.embeddings.create(model="x", input=text, extra_body={"truncate": "START"})
    assert close(answer.data[0].embedding, embed(raw, text, truncate="START")[0])


def test_a_base_url_without_v1(service: ServiceProcess, raw: httpx.Client) -> None:
    with openai.OpenAI(base_url=service.url, api_key="x", max_retries=0) as sdk:
        assert close(sdk.embeddings.create(model="x", input="one note").data[0].embedding, embed(raw, "one note")[0])


def test_the_asynchronous_client(service: ServiceProcess, raw: httpx.Client) -> None:
    async def many() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="x", max_retries=0) as sdk:
            answers = await asyncio.gather(*(sdk.embeddings.create(model="x", input=f"note {n}") for n in range(16)))
            return [a.data[0].embedding for a in answers]

    assert close(asyncio.run(many()), embed(raw, [f"note {n}" for n in range(16)]))


def test_models(sdk: openai.OpenAI) -> None:
    assert {"default", "embed", "qmd-embed", "rerank"} <= {m.id for m in sdk.models.list()}


def test_an_error_is_the_sdks_own_class_with_our_message(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.embeddings.create(model="x", input="one", dimensions=100_000)
    assert caught.value.param == "dimensions"
    assert "dimensions" in caught.value.message
    with pytest.raises(openai.NotFoundError, match="GENERATION_URL"):
        sdk.chat.completions.create(model="x", messages=[{"role": "user", "content": "hello"}])


def test_a_lone_surrogate_cannot_be_sent_by_this_sdk_but_its_escape_can(service: ServiceProcess, raw: httpx.Client) -> None:
    answer = raw.post(
        "/v1/embeddings",
        content=b'{"input": "cut ' + LONE_HIGH.encode("unicode_escape") + b'"}',
        headers={"content-type": "application/json"},
    )
    assert close(answer.json()["data"][0]["embedding"], embed(raw, "cut \ufffd")[0])
