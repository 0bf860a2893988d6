"""langchain-openai: with check_embedding_ctx_length=False it sends text; its default sends the ids of another tokeniser."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr

from tests.support.service import ServiceProcess
from tests.support.texts import prose
from tests.support.wire import close, embed


@pytest.fixture(scope="module")
def embeddings(service: ServiceProcess) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(
        base_url=f"{service.url}/v1", api_key=SecretStr("x"), model="embed", check_embedding_ctx_length=False, max_retries=0
    )


def test_documents(embeddings: OpenAIEmbeddings, raw: httpx.Client) -> None:
    texts = [prose(20 + n, n) for n in range(70)]
    assert close(embeddings.embed_documents(texts), embed(raw, texts))


def test_a_query(embeddings: OpenAIEmbeddings, raw: httpx.Client) -> None:
    assert close(embeddings.embed_query("where are the backups"), embed(raw, "where are the backups")[0])


def test_asynchronously(embeddings: OpenAIEmbeddings, raw: httpx.Client) -> None:
    async def query() -> list[float]:
        try:
            return await embeddings.aembed_query("one note")
        finally:
            await embeddings.async_client._client.close()  # it offers no way of its own

    assert close(asyncio.run(query()), embed(raw, "one note")[0])


def test_dimensions(service: ServiceProcess, raw: httpx.Client) -> None:
    short = OpenAIEmbeddings(
        base_url=f"{service.url}/v1", api_key=SecretStr("x"), model="embed", check_embedding_ctx_length=False, dimensions=64, max_retries=0
    )
    assert close(short.embed_query("one note"), embed(raw, "one note", dimensions=64)[0])
