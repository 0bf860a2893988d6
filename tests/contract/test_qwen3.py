"""The same wire over Qwen3's architecture: instructions, its own query form, a reranker that says yes or no.

The weights are random (tests/support/checkpoints.py); tokeniser, layout and template are the true ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.support.checkpoints import TASK, checkpoint
from tests.support.service import ServiceProcess
from tests.support.texts import PLANETS, RED_PLANET, prose
from tests.support.wire import assert_error, close, computed_tokens, embed, rerank, scores

LIMIT = 512
Q, D = "how do I back up the server", "Copies go to the second disk every night."


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    environment = {
        "EMBED_MODEL": str(checkpoint("qwen3-embedding")),
        "RERANK_MODEL": str(checkpoint("qwen3-reranker")),
        "MAX_INPUT_TOKENS": str(LIMIT),
    }
    with ServiceProcess(environment, tmp_path_factory.mktemp("qwen") / "service.log") as process:
        process.wait_healthy()
        with process.client() as client:
            yield client


def literal(client: httpx.Client, text: str) -> list[float]:
    """The vector of `text` as it stands: sent as ids, which no prompt policy touches."""
    ids = client.post("/tokenize", json={"input": text, "model": "embed"}).json()["tokens"]
    assert ids[-1] == 151_643
    return list(embed(client, ids)[0])


@pytest.mark.parametrize(
    ("sent", "computed"),
    [
        (Q, Q),
        (f"task: search result | query: {Q}", f"Instruct: {TASK}\nQuery:{Q}"),
        (f"title: none | text: {D}", D),
        (f"title: Backups | text: {D}", f"Backups\n{D}"),
        (f"Instruct: Retrieve relevant documents for the given query\nQuery: {Q}",) * 2,
    ],
)
def test_the_native_form(qwen: httpx.Client, sent: str, computed: str) -> None:
    assert close(embed(qwen, sent)[0], literal(qwen, computed))


def test_instruction_and_input_type(qwen: httpx.Client) -> None:
    query = literal(qwen, f"Instruct: {TASK}\nQuery:{Q}")
    assert close(embed(qwen, Q, input_type="query")[0], query)
    assert close(embed(qwen, Q, prompt_name="query")[0], query)
    assert close(embed(qwen, D, input_type="document")[0], literal(qwen, D))
    asked = literal(qwen, f"Instruct: Find the note\nQuery:{Q}")
    assert close(embed(qwen, Q, instruction="Find the note")[0], asked)
    assert close(embed(qwen, f"task: search result | query: {Q}", instruction="Find the note")[0], asked)
    assert not close(asked, query, 1e-3)


def test_max_input_tokens_is_the_limit(qwen: httpx.Client) -> None:
    text = prose(900)
    assert qwen.post("/v1/embeddings", json={"input": text}).json()["usage"]["prompt_tokens"] == LIMIT
    assert_error(qwen.post("/v1/embeddings", json={"input": text, "truncate": False}), 400, "maximum context length", str(LIMIT))


def test_a_score_is_the_probability_of_yes(qwen: httpx.Client) -> None:
    probabilities = np.asarray(scores(rerank(qwen, RED_PLANET, PLANETS)))
    logits = np.asarray(scores(rerank(qwen, RED_PLANET, PLANETS, raw_scores=True)))
    assert close(1 / (1 + np.exp(-logits)), probabilities)
    assert len(set(probabilities)) == 4
    assert close(scores(rerank(qwen, RED_PLANET, PLANETS)), np.concatenate([scores(rerank(qwen, RED_PLANET, [p])) for p in PLANETS]))


def test_instruction_of_a_rerank(qwen: httpx.Client) -> None:
    assert close(scores(rerank(qwen, RED_PLANET, PLANETS, instruction=TASK)), scores(rerank(qwen, RED_PLANET, PLANETS)))
    assert not close(
        scores(rerank(qwen, RED_PLANET, PLANETS, instruction="Find the odd one out")), scores(rerank(qwen, RED_PLANET, PLANETS))
    )


def test_pairs_of_score_are_reranks(qwen: httpx.Client) -> None:
    data = qwen.post("/v1/score", json={"text_1": RED_PLANET, "text_2": PLANETS}).json()["data"]
    assert close([d["score"] for d in data], scores(rerank(qwen, RED_PLANET, PLANETS)))


def test_the_document_is_cut_and_the_template_is_not(qwen: httpx.Client) -> None:
    head = prose(LIMIT, 1)
    answer = qwen.post("/v1/rerank", json={"query": RED_PLANET, "documents": [head + prose(2_000, 2), head + prose(90, 3), "short"]})
    assert answer.headers["x-truncated-inputs"] == "2"
    one, other, short = scores(answer.json()["results"])
    assert close(one, other)
    assert one != short
    # Cut to its room, the text is followed by the suffix: the same as a document that just fits.
    room = LIMIT - answer_tokens(qwen, "") + 1  # an empty document is one token, the space before it
    ids = qwen.post("/tokenize", json={"input": head, "model": "rerank"}).json()["tokens"]
    fitting = qwen.post("/detokenize", json={"tokens": ids[:room], "model": "rerank"}).json()["prompt"]
    answers = [qwen.post("/v1/rerank", json={"query": RED_PLANET, "documents": [text]}) for text in (fitting, head)]
    assert [answer.headers["x-truncated-inputs"] for answer in answers] == ["0", "1"]
    assert close(*(scores(answer.json()["results"])[0] for answer in answers))


def answer_tokens(client: httpx.Client, document: str) -> int:
    return int(client.post("/v1/rerank", json={"query": RED_PLANET, "documents": [document]}).json()["usage"]["total_tokens"])


def test_a_long_query_is_cut_after_the_document(qwen: httpx.Client) -> None:
    head = prose(LIMIT, 4)
    one, other = (scores(rerank(qwen, head + prose(700, seed), PLANETS[:2])) for seed in (5, 6))
    assert close(one, other)
    assert all(0 <= s <= 1 for s in one)


def test_a_refused_cut_names_what_is_too_long(qwen: httpx.Client) -> None:
    long = prose(900)
    for path, body in (
        ("/v1/rerank", {"query": long, "documents": PLANETS}),
        ("/rerank", {"query": long, "texts": PLANETS}),
        ("/v1/score", {"queries": long, "documents": PLANETS}),
    ):
        error = assert_error(qwen.post(path, json={**body, "truncate": False}), 400, "maximum context length", str(LIMIT))
        assert error["param"] == next(iter(body)), "the documents are short: shortening them would not help"
    answer = qwen.post("/v1/rerank", json={"query": Q, "documents": ["short", long], "truncate": False})
    assert assert_error(answer, 400, str(LIMIT))["param"] == "documents[1]"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"query": Q, "documents": [D], "max_tokens_per_doc": 2}),
        ("/v1/embeddings", {"input": [D], "truncate_prompt_tokens": 4}),
    ],
)
def test_a_limit_of_the_request_is_the_one_that_the_refusal_tells(qwen: httpx.Client, path: str, body: dict[str, object]) -> None:
    message = assert_error(qwen.post(path, json={**body, "truncate": False}), 400, "maximum context length")["message"]
    most, has = (int(number) for number in re.findall(r"(\d+) tokens, but the text has (\d+)", message)[0])
    assert most < has < LIMIT


def test_identical_documents_are_computed_once(qwen: httpx.Client) -> None:
    start = computed_tokens(qwen, "rerank")
    rerank(qwen, RED_PLANET, [PLANETS[0]])
    middle = computed_tokens(qwen, "rerank")
    assert len(rerank(qwen, RED_PLANET, [PLANETS[0]] * 20)) == 20
    assert computed_tokens(qwen, "rerank") - middle == middle - start > 0


def test_ids_of_either_model(qwen: httpx.Client) -> None:
    for text, ids in (("yes", [9693]), ("no", [2152])):
        body = {"prompt": text, "model": "rerank", "add_special_tokens": False}
        assert qwen.post("/tokenize", json=body).json()["tokens"] == ids
    assert qwen.post("/tokenize", json={"input": "yes", "model": "embed"}).json()["tokens"] == [9693, 151_643]


def test_neighbours_change_nothing(qwen: httpx.Client) -> None:
    texts = [prose(3 + 13 * n, n) for n in range(16)]
    assert close(embed(qwen, texts), np.concatenate([embed(qwen, t) for t in texts]))
