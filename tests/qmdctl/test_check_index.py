"""`qmdctl test --check-index` on a real client's index, against the real service."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qmdctl.errors import QmdError
from qmdctl.index.compare import Match, Verdict, compare, cosine, judge
from qmdctl.index.database import Chunk, read_index
from qmdctl.index.forms import DOCUMENT_FORM, GEMMA_FORM, LITERAL_FORM
from qmdctl.index.report import healthy
from qmdctl.index.server import EmbedServer
from tests.qmdctl.conftest import Run
from tests.qmdctl.index_files import DIMENSIONS, FAILED, NOTES, SCORES, VECTORS, change_vectors, contents, put_vectors, redeclare, run_sql
from tests.qmdctl.index_files import seed_index as copy_of_seed_index
from tests.support.service import ServiceProcess, free_port


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return copy_of_seed_index(folder)


@pytest.fixture(scope="module")
def raw_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """The same model, the clients' texts left as they come."""
    with ServiceProcess({"PROMPT_POLICY": "raw"}, tmp_path_factory.mktemp("raw") / "log") as process:
        process.wait_healthy()
        yield process


def judged(index: Path, service: ServiceProcess) -> Verdict:
    with httpx.Client(trust_env=False) as client:
        return compare(read_index(index), EmbedServer(service.url, 60, None, client))


def embedded(index: Path, service: ServiceProcess) -> dict[str, list[float]]:
    """By key the vectors that `qmd embed -f` would store through this service."""
    chunks = read_index(index).chunks
    texts = [GEMMA_FORM.render(chunk.titles[0], chunk.text) for chunk in chunks]
    with httpx.Client(trust_env=False) as client:
        vectors = EmbedServer(service.url, 60, None, client).vectors(texts)
    return {chunk.key: vector for chunk, vector in zip(chunks, vectors, strict=True)}


def test_a_real_clients_index_and_its_server(index: Path, service: ServiceProcess, qmdctl: Run, tmp_path: Path) -> None:
    before = contents(index.parent)
    arguments = ("test", "--check-index", "--embed-url", service.url)
    done = qmdctl(*arguments, INDEX_PATH=str(index))
    assert done.returncode == 1, "the zero scores"
    assert "✓ Index and server speak the same space." in done.stdout
    assert f"{FAILED} rerank scores of zero" in done.stdout
    assert "on this laptop: qmd cleanup" in done.stdout
    assert {**contents(index.parent), **before} == {**before, "index.sqlite-wal": b""}
    run_sql(index, "DELETE FROM llm_cache")  # as qmd cleanup does
    clean = qmdctl(*arguments, "--index", str(index), "--json")
    assert clean.returncode == 0, clean.stderr


def test_the_json_has_what_the_verdict_rests_on(index: Path, service: ServiceProcess, qmdctl: Run) -> None:
    import json

    done = qmdctl("test", "--check-index", "--embed-url", service.url, "--index", str(index), "--json")
    data = json.loads(done.stdout)
    assert (data["ok"], data["verdict"]) == (False, "same")
    assert data["index"]["documents"] == NOTES
    assert data["index"]["vectors"] == VECTORS
    assert data["index"]["dimensions"] == data["server"]["dimensions"] == DIMENSIONS
    assert data["cached_rerank_scores"] == {"all": SCORES, "zero": FAILED}
    assert [step["command"] for step in data["steps"]] == ["qmd cleanup"]
    assert data["server"]["prompt_policy"] == "native"
    assert len(data["compared"]) == NOTES
    assert all(one["cosine"] > 0.999 and one["form"] == "gemma" for one in data["compared"]), data["compared"]


def test_a_log_that_is_not_written_back_is_read_and_left_alone(index: Path, service: ServiceProcess) -> None:
    writer = sqlite3.connect(index, isolation_level=None)
    try:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("INSERT INTO llm_cache VALUES ('new', '0.5', '2026-11-26T09:00:00.000Z')")
        writer.execute("BEGIN IMMEDIATE")  # and somebody is writing at this moment
        before = contents(index.parent)
        assert len(before["index.sqlite-wal"]) > 0
        read = read_index(index)
        assert read.scores == SCORES + 1
        assert contents(index.parent) == before
        writer.execute("COMMIT")
    finally:
        writer.close()


def test_another_models_vectors(index: Path, service: ServiceProcess) -> None:
    change_vectors(index, lambda key, vector: [*reversed(vector)])
    verdict = judged(index, service)
    assert verdict.kind == "different"
    assert "the vectors are another model's" in verdict.sentence
    assert [step.command for step in verdict.steps] == ["qmd embed -f"]


def test_an_index_of_two_kinds(index: Path, service: ServiceProcess) -> None:
    new = [chunk.key for chunk in read_index(index).chunks][:3]
    change_vectors(index, lambda key, vector: [*reversed(vector)] if key in new else vector)
    verdict = judged(index, service)
    assert verdict.kind == "mixed"
    assert f"{NOTES - 3} of {NOTES}" in verdict.sentence
    assert verdict.steps[0].command == "qmd embed -f"


@pytest.mark.parametrize("policy", ["native", "raw"])
def test_other_kinds_together_are_not_kept_by_a_policy(policy: str) -> None:
    """No vector of the server's, and more of its model under the other policy than of another model."""
    form = LITERAL_FORM if policy == "native" else DOCUMENT_FORM
    chunk = Chunk("a_0", "a.md", (), "text", "embeddinggemma", array("f"))
    kept, foreign = Match(chunk, form, 0.9999), Match(chunk, form, 0.4)
    kind, said, steps = judge([kept] * 7 + [foreign] * 5, policy)
    assert (kind, [step.command for step in steps]) == ("mixed", ["qmd embed -f"])
    assert "0 of 12" in said and "7 of its model under PROMPT_POLICY=" in said and "5 of another model" in said
    alone = judge([kept] * 12, policy)
    assert alone[0] == "different" and any("PROMPT_POLICY=" in step.command for step in alone[2])


def test_an_index_made_where_texts_were_left_alone(index: Path, service: ServiceProcess, raw_service: ServiceProcess) -> None:
    put_vectors(index, embedded(index, raw_service))
    assert judged(index, raw_service).kind == "same"
    verdict = judged(index, service)
    assert verdict.kind == "different"
    assert "not one prompt policy" in verdict.sentence
    assert [step.command for step in verdict.steps] == ["qmd embed -f", "PROMPT_POLICY=raw in .env, then qmdctl up"]


def test_an_index_made_where_texts_were_rewritten(index: Path, raw_service: ServiceProcess) -> None:
    verdict = judged(index, raw_service)
    assert verdict.kind == "different"
    assert verdict.steps[0].command == "PROMPT_POLICY=native in .env, then qmdctl up"


def test_a_client_that_sends_title_and_text(index: Path, raw_service: ServiceProcess) -> None:
    """The same vectors under a name for which a client sends no prefixes: these it still sends, and the server leaves them alone."""
    run_sql(index, "UPDATE content_vectors SET model = 'Qwen/Qwen3-Embedding-4B'")
    verdict = judged(index, raw_service)
    assert (verdict.kind, {one.form.name for one in verdict.matches}) == ("same", {"title and text"})


def test_vectors_that_the_client_cut(index: Path, service: ServiceProcess) -> None:
    """One that keeps the first 128 numbers of a vector."""
    with sqlite3.connect(index) as connection:
        (blob,) = connection.execute("SELECT vectors FROM vectors_vec_vector_chunks00").fetchone()
        whole = array("f", blob)
        cut = array("f", (number for start in range(0, len(whole), DIMENSIONS) for number in whole[start : start + 128]))
        connection.execute("UPDATE vectors_vec_vector_chunks00 SET vectors = ?", (cut.tobytes(),))
    connection.close()
    redeclare(index, "float[384]", "float[128]")
    verdict = judged(index, service)
    assert (verdict.kind, verdict.dimensions) == ("same", DIMENSIONS)


def test_vectors_of_another_size(index: Path, service: ServiceProcess) -> None:
    redeclare(index, "float[384]", "float[1024]")
    verdict = judged(index, service)
    assert verdict.kind == "different"
    assert "have 1024 numbers" in verdict.sentence
    assert "have 384" in verdict.sentence


def test_an_index_without_vectors(index: Path, service: ServiceProcess) -> None:
    run_sql(index, "DELETE FROM content_vectors", "DELETE FROM llm_cache")
    read, verdict = read_index(index), judged(index, service)
    assert verdict.kind == "unknown"
    assert "holds no vectors" in verdict.sentence
    assert healthy(read, verdict)


def test_vectors_whose_documents_are_gone(index: Path, service: ServiceProcess) -> None:
    run_sql(index, "UPDATE documents SET active = 0", "DELETE FROM llm_cache")
    read, verdict = read_index(index), judged(index, service)
    assert verdict.kind == "unknown"
    assert f"cannot be told: the {VECTORS} vectors are of documents that are no longer in the collections" in verdict.sentence
    assert [step.command for step in verdict.steps] == ["qmd update, then qmd embed", "qmd embed -f"]
    assert not healthy(read, verdict)


def test_vectors_whose_texts_cannot_be_told(index: Path, service: ServiceProcess) -> None:
    """Of every document the first chunks have no vector, as of a client that was stopped."""
    run_sql(index, "UPDATE content_vectors SET seq = seq + 100", "DELETE FROM llm_cache")
    read, verdict = read_index(index), judged(index, service)
    assert read.attached == VECTORS and not read.chunks
    assert verdict.kind == "unknown"
    assert "none has a text that is known for certain" in verdict.sentence


def test_no_server(index: Path, qmdctl: Run) -> None:
    done = qmdctl("test", "--check-index", "--embed-url", f"http://127.0.0.1:{free_port()}", "--index", str(index))
    assert done.returncode == 1
    assert "link by link: qmdctl test" in done.stderr
    assert "Traceback" not in done.stderr


def test_index_alone_is_refused(qmdctl: Run) -> None:
    done = qmdctl("test", "--index", "x")
    assert done.returncode == 2
    assert "qmdctl test --check-index --index x" in done.stderr


def test_cosine_of_what_cannot_be_compared() -> None:
    assert cosine([1, 0], [0, 1]) == 0
    assert cosine([0, 0], [1, 0]) == 0
    assert cosine([1, 2], [1, 2, 3]) == 0
    assert cosine([float("nan"), 1], [1, 1]) == 0
    assert cosine([3e30, 0], [1e-30, 0]) == pytest.approx(1)


def test_a_server_that_wants_a_key_is_told(index: Path, tmp_path: Path) -> None:
    from tests.support.laptop import FakeStack

    with FakeStack(key="right") as stack, httpx.Client(trust_env=False) as client, pytest.raises(QmdError, match="wants an API key"):
        compare(read_index(index), EmbedServer(stack.url, 10, None, client))
