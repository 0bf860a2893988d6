"""Prompts: the client's Gemma shapes, the fields that choose a prompt, and PROMPT_POLICY=raw.

The model is MiniLM with two prompts in its config_sentence_transformers.json, as nomic or E5 have them. What it is expected to compute is
sent as token ids, which no policy touches.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.support.service import ServiceProcess
from tests.support.wire import assert_error, close, embed

QUERY, DOCUMENT, OTHER = "look for: ", "passage: ", "sort: "
Q, D = "how do I back up the server", "Copies go to the second disk every night."


@pytest.fixture(scope="module")
def prompted(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("prompted") / "model"
    shutil.copytree(minilm, folder)
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prompts": {"query": QUERY, "document": DOCUMENT, "sorting": OTHER}}))
    return str(folder)


def start(prompted: str, log: Path, policy: str) -> Iterator[httpx.Client]:
    environment = {"EMBED_MODEL": prompted, "RERANK_MODEL": prompted, "PROMPT_POLICY": policy}
    with ServiceProcess(environment, log) as process:
        process.wait_healthy()
        with process.client() as client:
            yield client


@pytest.fixture(scope="module")
def native(prompted: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    yield from start(prompted, tmp_path_factory.mktemp("native") / "service.log", "native")


@pytest.fixture(scope="module")
def raw(prompted: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    yield from start(prompted, tmp_path_factory.mktemp("raw") / "service.log", "raw")


REWRITTEN = [
    (f"task: search result | query: {Q}", QUERY + Q),
    (f"title: none | text: {D}", DOCUMENT + D),
    (f"title: Backups | text: {D}", f"{DOCUMENT}Backups\n{D}"),
    (f"title: a | b: c | text: {D} | text: again", f"{DOCUMENT}a | b: c\n{D} | text: again"),
    (f"title: none | text: # Notes\n\n{D}\n", f"{DOCUMENT}# Notes\n\n{D}\n"),
]
LEFT_ALONE = [
    Q, D, f" task: search result | query: {Q}", f"Task: search result | query: {Q}",
    f"task: clustering | query: {Q}", f"see title: none | text: {D}",
    f"query: {Q}", f"search_query: {Q}", f"Instruct: find\nQuery:{Q}", "title: none", f"title: none |text: {D}",
]  # fmt: skip


@pytest.mark.parametrize(("sent", "computed"), REWRITTEN)
def test_native_rewrites_the_gemma_shapes(native: httpx.Client, tokenizer: Tokenizer, sent: str, computed: str) -> None:
    rows = embed(native, ["neighbour", sent])
    assert close(rows[1], embed(native, tokenizer.encode(computed).ids)[0])
    assert close(rows[0], embed(native, tokenizer.encode("neighbour").ids)[0])


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_native_rewrites_nothing_else(native: httpx.Client, tokenizer: Tokenizer, text: str) -> None:
    assert close(embed(native, text), embed(native, tokenizer.encode(text).ids))


@pytest.mark.parametrize("text", [*LEFT_ALONE, *(sent for sent, _ in REWRITTEN)])
def test_raw_rewrites_nothing(raw: httpx.Client, tokenizer: Tokenizer, text: str) -> None:
    assert close(embed(raw, text), embed(raw, tokenizer.encode(text).ids))


def test_the_policy_is_in_health_and_in_the_fingerprint(native: httpx.Client, raw: httpx.Client, client: httpx.Client) -> None:
    bodies = [c.get("/health").json() for c in (native, raw, client)]
    assert [b["prompt_policy"] for b in bodies] == ["native", "raw", "native"]
    assert len({b["fingerprint"] for b in bodies}) == 3  # the third has other prompts


@pytest.mark.parametrize("value", ["query", "search_query"])
def test_input_type_query(native: httpx.Client, raw: httpx.Client, tokenizer: Tokenizer, value: str) -> None:
    for service in (native, raw):
        assert close(embed(service, Q, input_type=value), embed(service, tokenizer.encode(QUERY + Q).ids))


@pytest.mark.parametrize("value", ["document", "search_document", "passage"])
def test_input_type_document(native: httpx.Client, tokenizer: Tokenizer, value: str) -> None:
    assert close(embed(native, [D, Q], input_type=value), [embed(native, tokenizer.encode(DOCUMENT + t).ids)[0] for t in (D, Q)])


@pytest.mark.parametrize("fields", [{"input_type": "query"}, {"prompt_name": "query"}], ids=str)
def test_a_gemma_shape_is_not_prompted_twice(native: httpx.Client, tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    got = embed(native, f"task: search result | query: {Q}", **fields)
    assert close(got, embed(native, tokenizer.encode(QUERY + Q).ids))


@pytest.mark.parametrize(("name", "prompt"), [("query", QUERY), ("document", DOCUMENT), ("sorting", OTHER)])
def test_prompt_name(native: httpx.Client, tokenizer: Tokenizer, name: str, prompt: str) -> None:
    assert close(embed(native, Q, prompt_name=name), embed(native, tokenizer.encode(prompt + Q).ids))


def test_an_unknown_prompt_name_is_400_and_lists_the_known(native: httpx.Client) -> None:
    assert_error(
        native.post("/v1/embeddings", json={"input": Q, "prompt_name": "poem"}), 400, "prompt_name", "query", "document", "sorting"
    )


def test_ids_get_no_prompt(native: httpx.Client, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(Q).ids
    assert close(embed(native, ids, input_type="query"), embed(native, ids))


def test_a_long_prompted_text_is_cut_with_its_prompt_kept(native: httpx.Client, tokenizer: Tokenizer) -> None:
    text = "note " * 600
    ids = tokenizer.encode(QUERY + text).ids
    assert close(embed(native, text, input_type="query"), embed(native, [*ids[:255], ids[-1]]))
