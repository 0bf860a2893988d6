"""The prompt policy, against the model cards' forms."""

from __future__ import annotations

from typing import Any

import pytest

from embed_service.errors import BadRequest
from embed_service.models.spec import ModelSpec
from embed_service.text.prompts import INPUT_TYPES, Policy, Prompter

TASK = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
PROMPTS: dict[str, dict[str, str]] = {
    "qwen3": {"query": TASK, "document": ""},
    "nomic": {"query": "search_query: ", "document": "search_document: ", "clustering": "clustering: "},
    "bge": {"query": "Represent this sentence for searching relevant passages: "},
    "minilm": {},
    "gemma": {"query": "task: search result | query: ", "document": "title: none | text: "},
}


def prompter(model: str, policy: Policy = "native") -> Prompter:
    spec = ModelSpec(
        role="embed", id=model, revision="r", path="/", architecture=model, kind="embedding", max_tokens=512, vocabulary=10,
        prompts=PROMPTS[model], instruct=model == "qwen3",
    )  # fmt: skip
    return Prompter(spec, policy)


@pytest.mark.parametrize(
    ("model", "query", "titled", "untitled"),
    [
        ("qwen3", TASK + "a b", "T\nx\ny", "x\ny"),
        ("nomic", "search_query: a b", "search_document: T\nx\ny", "search_document: x\ny"),
        ("bge", PROMPTS["bge"]["query"] + "a b", "T\nx\ny", "x\ny"),
        ("minilm", "a b", "T\nx\ny", "x\ny"),
        ("gemma", "task: search result | query: a b", "title: T | text: x\ny", "title: none | text: x\ny"),
    ],
)
def test_gemmas_shapes_take_the_served_models_form(model: str, query: str, titled: str, untitled: str) -> None:
    shapes = ["task: search result | query: a b", "title: T | text: x\ny", "title: none | text: x\ny"]
    assert prompter(model).apply(shapes) == [query, titled, untitled]
    assert prompter(model, "raw").apply(shapes) == shapes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "Title: T | text: x",
        " title: T | text: x",
        "title: T | text:x",
        "title: two\nlines | text: x",
        "task: search result | query:x",
        "task: question answering | query: x",
        "see task: search result | query: x",
        "Instruct: Retrieve relevant documents for the given query\nQuery: x",
        "search_query: x",
    ],
)
def test_nothing_else_is_rewritten(text: str) -> None:
    for model in PROMPTS:
        assert prompter(model).apply([text]) == [text]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("title: a | b | text: c", "a | b\nc"),
        ("title: a | text: b | text: c", "a\nb | text: c"),
        ("title: none | text: title: x | text: y", "title: x | text: y"),
        ("title:  | text: y", "y"),
        ("title: none | text: ", ""),
    ],
)
def test_the_first_separator_ends_the_title(shape: str, expected: str) -> None:
    assert prompter("qwen3").apply([shape]) == [expected]


@pytest.mark.parametrize("spelling", [*INPUT_TYPES, "QUERY", "Search_Document", "RETRIEVAL_QUERY"])
def test_every_spelling_of_an_input_type_takes_the_models_prompt(spelling: str) -> None:
    prompt = {"query": "search_query: ", "document": "search_document: ", "clustering": "clustering: ", "classification": ""}
    for policy in ("native", "raw"):
        assert prompter("nomic", policy).apply(["x"], input_type=spelling) == [prompt[INPUT_TYPES[spelling.lower()]] + "x"]


def test_an_input_type_does_not_prefix_a_known_shape_twice() -> None:
    assert prompter("nomic").apply(["task: search result | query: x"], input_type="query") == ["search_query: x"]
    assert prompter("nomic").apply(["title: none | text: x"], input_type="document") == ["search_document: x"]
    assert prompter("nomic").apply(["title: none | text: x"], input_type="query") == ["search_query: title: none | text: x"]


def test_a_prompt_by_name_goes_before_the_input_type() -> None:
    assert prompter("nomic").apply(["x"], prompt_name="clustering", input_type="query") == ["clustering: x"]
    assert prompter("qwen3").apply(["x"], prompt_name="query", input_type="document") == [TASK + "x"]


def test_an_instruction_makes_a_query() -> None:
    task = "Find the recipe"
    expected = [f"Instruct: {task}\nQuery:x"]
    for choice in ({}, {"input_type": "query"}, {"prompt_name": "query"}):
        assert prompter("qwen3").apply(["x"], instruction=task, **choice) == expected
    assert prompter("qwen3").apply(["task: search result | query: x"], instruction=task) == expected
    assert prompter("qwen3").apply(["x"], instruction=task, input_type="document") == ["x"]
    assert prompter("qwen3").apply(["x"], instruction="") == ["x"]


def test_a_model_without_instructions_ignores_one() -> None:
    for choice in ({}, {"input_type": "query"}, {"prompt_name": "query"}):
        assert prompter("nomic").apply(["x"], instruction="Find", **choice) == prompter("nomic").apply(["x"], **choice)
    assert prompter("nomic").query("x", "Find") == "search_query: x"


@pytest.mark.parametrize(
    ("model", "choice", "param", "part"),
    [
        ("nomic", {"prompt_name": "passage"}, "prompt_name", "'clustering'"),
        ("minilm", {"prompt_name": "query"}, "prompt_name", "none"),
        ("nomic", {"input_type": "questions"}, "input_type", "'query' or 'document'"),
    ],
)
def test_a_wrong_choice_is_named(model: str, choice: dict[str, Any], param: str, part: str) -> None:
    with pytest.raises(BadRequest) as error:
        prompter(model).apply(["x"], **choice)
    assert error.value.param == param
    assert part in error.value.message
