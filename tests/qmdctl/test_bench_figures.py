"""Percentiles, the division of the time, what is compared, and what each share makes of the advice; no request is sent."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from qmdctl.bench.advice import Measured, advise
from qmdctl.bench.client import Answer
from qmdctl.bench.expectation import box_preset, compare, named_preset
from qmdctl.bench.figures import P95_SAMPLES, failures, percentile, phase_figures, traffic
from qmdctl.bench.history import KEPT, History, figures_kept, key_of
from qmdctl.bench.load import Limits, PhaseRun, Run, Search
from qmdctl.bench.plan import SIZES, Estimate, Phase, fitting, phases, shares
from qmdctl.bench.report import Report
from qmdctl.bench.target import Target, box, parse_agents, prove
from qmdctl.bench.texts import Notes
from qmdctl.bench.workload import EMBEDDED, RERANKED, Requests, Workload, variants
from qmdctl.engine import Container
from qmdctl.errors import ConfigurationError, QmdError
from tests.qmdctl.machines import SPARK, machine
from tests.qmdctl.projects import settings_of


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    # Nearest rank: the value at position ceil(percent / 100 × n) of the sorted ones.
    [
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([1.0, 2.0], 50, 1.0),
        ([5.0], 95, 5.0),
        (list(map(float, range(1, 21))), 95, 19.0),
        ([4.0, 9.0], 100, 9.0),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def answer(
    kind: Any, seconds: float, *, tokens: int = 100, generated: int = 0, texts: int = 1, ended: float = 0.0, **parts: float
) -> Answer:
    return Answer(kind, seconds, ended, 1000, 200, texts, tokens, generated, parts)


def search(expansion: float = 3.0, embedding: float = 0.1, rerank: float = 5.0, queue: float = 0.0, way: float = 0.0) -> Search:
    links = (
        *([answer("expansion", expansion, generated=80)] if expansion else []),
        answer("embedding", embedding, queue=0.0, tokenise=0.0, compute=embedding),
        answer("rerank", rerank + queue + way, tokens=30_000, queue=queue, tokenise=0.0, compute=rerank),
    )
    return Search(sum(link.seconds for link in links), links)


def searches(*made: Search, agents: int = 1, name: Any = "searches", seconds: float = 10.0) -> PhaseRun:
    return PhaseRun(Phase(name, agents), seconds, list(made))


def indexing(seconds: float = 3.0, batches: int = 4, **parts: float) -> PhaseRun:
    made = [answer("indexing", seconds, tokens=32 * 600, texts=32, **(parts or {"queue": 0.0, "tokenise": 0.1, "compute": seconds - 0.2}))]
    return PhaseRun(Phase("indexing", 1), seconds * batches, [], made * batches, seconds * batches)


def test_figures_of_a_phase() -> None:
    run = searches(*(search(rerank=float(n)) for n in range(1, P95_SAMPLES + 1)), seconds=100)
    figures = phase_figures(run).searches
    assert figures is not None
    assert (figures.count, figures.p50, figures.p95, figures.slowest) == pytest.approx((20, 13.1, 22.1, 23.1))
    assert figures.per_second == pytest.approx(0.2)
    assert figures.links["rerank"].seconds == pytest.approx(10.5) and figures.links["rerank"].rest == pytest.approx(0)
    assert figures.links["expansion"].generated_per_second == pytest.approx(80 / 3)
    fewer = phase_figures(searches(*(search() for _ in range(P95_SAMPLES - 1)))).searches
    assert fewer is not None and fewer.p95 is None
    index = phase_figures(indexing()).indexing
    assert index is not None
    assert (index.chunks, index.chunks_per_second, index.tokens_per_second) == pytest.approx((128, 32 / 3, 6400))
    assert index.minutes_per_10000 == pytest.approx(10_000 / (32 / 3) / 60)
    empty = phase_figures(searches())
    assert empty.searches is None and empty.indexing is None


def test_bytes_and_failures_are_counted_by_kind() -> None:
    run = Run(Workload(), Limits(), [searches(search(), search()), indexing()])
    run.done[0].failures = [Answer("rerank", 1, 1, 10, failure="503"), Answer("rerank", 1, 1, 10, failure="timeout")]
    run.warming = [answer("embedding", 1), Answer("rerank", 1, 1, 10, failure="503")]
    assert traffic(run)["rerank"] == {"requests": 2, "sent_bytes": 2000, "received_bytes": 400}
    assert traffic(run)["indexing"]["requests"] == 4
    assert failures(run) == {"rerank": {"503": 2, "timeout": 1}}


def test_texts_follow_from_the_seed_and_are_all_different() -> None:
    one, again, other = (Requests(Notes(seed), Workload()) for seed in ("aa", "aa", "bb"))
    first, second = one.indexing(), one.indexing()
    assert first == again.indexing() and first != other.indexing()
    texts = [*first.body["input"], *second.body["input"]]
    assert len(set(texts)) == 64 and all(text.startswith("title: aa-") and " | text: ## " in text for text in texts)
    bodies = [text.split(" | text: ", 1)[1] for text in texts]
    assert all(EMBEDDED[0] - 50 <= len(body) <= EMBEDDED[2] for body in bodies)
    documents = one.rerank("q").body["documents"]
    assert len(set(documents)) == 40 and max(map(len, documents)) <= RERANKED[2]
    # About 600 and 750 tokens at about four characters each, which presets.yaml counts with.
    assert 1900 < sum(map(len, bodies)) / 64 < 2500 and 2500 < sum(map(len, documents)) / 40 < 3200
    assert one.query() != one.query()


def test_a_search_embeds_what_the_client_embeds() -> None:
    query = "why does the backup fail"
    expanded = "lex: backup\nvec: reasons for a failing backup\nhyde: The backup fails at night.\nvec: unrelated text\nnonsense"
    assert variants(query, expanded) == ["reasons for a failing backup", "The backup fails at night."]
    assert variants(query, "") == [query, f"Information about {query}"]
    body = Requests(Notes("aa"), Workload()).embedding(query, expanded).body
    assert body["input"][0] == f"task: search result | query: {query}" and len(body["input"]) == 3


FAST = Estimate(0.5, 0.005, 0.01)
SLOW_CPU = Estimate(8.0, 2.0, 2.2)


def test_a_spark_needs_no_smaller_workload() -> None:
    """presets.yaml: 3.1 s of expansion, 6,500 tokens/s."""
    spark = Estimate(3.1, 600 / 6500, 750 / 6500)
    workload, said = fitting(Workload(), spark, phases((1, 5)), 115)
    assert workload == Workload() and not said
    left, seconds = phases((1, 5)), 115.0
    while left:  # each phase takes what it is given: all six are run
        given, fits = shares(left, spark, workload, seconds)
        assert fits and given >= spark.round(left[0], workload)
        seconds -= given
        left = left[1:]
    assert seconds == pytest.approx(0, abs=1e-6)


def test_a_slow_machine_gets_a_smaller_workload_and_says_so() -> None:
    workload, said = fitting(Workload(), SLOW_CPU, phases((1, 5)), 100)
    assert (workload.batch, workload.candidates) in SIZES[1:]
    assert any("reranks of" in sentence and "96 s" in sentence for sentence in said)
    assert workload.max_tokens == 400 or any("expansions end" in sentence for sentence in said)
    assert fitting(Workload(), FAST, phases((1, 5)), 100) == (Workload(), [])
    # What is left out takes no time from what is run.
    given, fits = shares(phases((1, 64)), SLOW_CPU, workload, 100)
    assert fits and given * 3 == pytest.approx(
        3 * SLOW_CPU.round(Phase("searches", 1), workload) + 100 - sum(SLOW_CPU.round(one, workload) for one in phases((1,)))
    )
    assert shares([Phase("searches", 64)], SLOW_CPU, workload, 100)[1] is False


def said_of(*runs: PhaseRun, **more: Any) -> dict[str, str]:
    """Advice by what it is about: sentence and setting."""
    found = advise(Measured([phase_figures(run) for run in runs], **more))
    return {one.about: f"{one.sentence} {one.setting}" for one in found}


GPU = {"device": "cuda:0", "attention": "varlen"}


def test_advice_follows_the_largest_share() -> None:
    slow_words = said_of(searches(search(expansion=6.0, rerank=1.0)), facts=GPU)
    assert "80 tokens" in slow_words["expansion"] and "13 per second" in slow_words["expansion"] and "FP8" in slow_words["expansion"]
    assert "rerank" not in slow_words
    eager = said_of(searches(search(expansion=6.0, rerank=1.0)), facts=GPU, settings={"VLLM_ENFORCE_EAGER": "true"})
    assert "VLLM_ENFORCE_EAGER=false" in eager["expansion"]
    slow_rerank = said_of(searches(search(expansion=0.5)), facts=GPU)
    assert "89% of a search" in slow_rerank["rerank"] and "6000 tokens/s" in slow_rerank["rerank"] and "expansion" not in slow_rerank


def test_of_few_searches_it_is_a_guess() -> None:
    """Fewer than three, fewer than agents, or the slower ones cut."""
    words = {"facts": GPU}
    assert said_of(searches(*[search()] * 2), **words)["rerank"].startswith("Perhaps, as few searches")
    whole = said_of(searches(*[search()] * 3), **words)
    assert whole["rerank"].startswith("The rerank is 62%")
    cut = searches(*[search()] * 3)
    cut.cut_searches = 1
    assert said_of(cut, **words)["rerank"].startswith("Perhaps")
    one, five = searches(*[search()] * 3, seconds=24.3), searches(*[search()] * 5, agents=5, seconds=40)
    assert said_of(one, five, **words)["agents"].startswith("5 agents get 0.12 searches/s together, one alone 0.12")
    four = searches(*[search()] * 4, agents=5, seconds=32)
    assert said_of(one, four, **words)["agents"].startswith("Perhaps")
    under = searches(*[search(queue=6.0)] * 2, name="searches under indexing")
    assert said_of(one, under, **words)["under indexing"].startswith("Perhaps")


def test_five_agents_are_not_compared_with_themselves() -> None:
    five = searches(*[search()] * 100, agents=5, seconds=40)
    said = said_of(five, searches(*[search(queue=9.0)] * 9, agents=1, name="searches under indexing"), facts=GPU)
    assert "agents" not in said and "queue" not in said
    assert "under indexing" not in said  # of one agent, and alone there were five
    assert "62% of a search" in said["rerank"]


def test_advice_on_the_device() -> None:
    assert "DEVICE=cuda" in said_of(searches(search()), facts={"device": "cpu", "attention": "sdpa"})["device"]
    assert "USE_FLASH_ATTN" in said_of(searches(search()), facts={"device": "cuda:0", "attention": "sdpa"})["device"]
    assert "device" not in said_of(searches(search()), facts=GPU)


def test_advice_on_the_way() -> None:
    far = said_of(searches(search(way=4.0)), facts=GPU, round_trips={"embed": 0.08})
    assert "44% of embedding and rerank" in far["network"] and "80 ms" in far["network"] and "relay" in far["network"]
    assert "network" not in said_of(searches(search()), facts=GPU, round_trips={"embed": 0.08})
    batch = indexing(3.0, queue=0.0, tokenise=0.1, compute=1.0)
    assert "63% of a batch" in said_of(batch, facts=GPU, round_trips={"embed": 0.001})["network"]
    near = said_of(searches(search(way=4.0)), facts=GPU, round_trips={"embed": 0.001})
    assert "micro-batch of others" in near["network"] and "GET /metrics" in near["network"]


def test_advice_under_indexing_names_where_it_grew() -> None:
    name = "searches under indexing"
    waits = said_of(searches(search()), searches(search(queue=6.0), name=name), facts=GPU)
    assert (
        "TARGET_BATCH_MS" in waits["under indexing"] and "added to rerank" in waits["under indexing"] and "queue" in waits["under indexing"]
    )
    behind = said_of(searches(search()), searches(search(way=6.0), name=name), facts=GPU)
    assert "6.00 s of it in rest: a search waits for the rest of one micro-batch, which is not in queue" in behind["under indexing"]
    shared = said_of(searches(search()), searches(search(expansion=12.0), name=name), facts=GPU)
    assert "share one device" in shared["under indexing"]
    assert "under indexing" not in said_of(searches(search()), searches(search(queue=1.0), name=name), facts=GPU)


def test_advice_on_indexing_agents_and_failures() -> None:
    assert "EMBED_MODEL" in said_of(indexing(), facts=GPU)["indexing"] and "6400 tokens/s" in said_of(indexing(), facts=GPU)["indexing"]
    words = said_of(indexing(3.0, queue=0.0, tokenise=1.2, compute=1.5), facts=GPU)
    assert "TOKENIZER_THREADS" in words["indexing"]
    full = said_of(searches(search(), seconds=8.1), searches(*[search()] * 5, agents=5, seconds=40), facts=GPU)
    assert "device is full" in full["agents"]
    waits = said_of(searches(search()), searches(*[search(expansion=12.0)] * 5, agents=5), facts=GPU)
    assert "VLLM_MAX_NUM_SEQS" in waits["agents"]
    assert "agents" not in said_of(searches(search(), seconds=8.1), searches(*[search()] * 5, agents=5, seconds=9), facts=GPU)
    assert "MAX_QUEUED_TOKENS" in said_of(searches(search()), failures={"rerank": {"503": 1}}, facts=GPU)["failures"]
    assert "120 s" in said_of(searches(search()), failures={"rerank": {"timeout": 1}}, facts=GPU)["failures"]


def test_comparison_with_the_preset(tmp_path: Path) -> None:
    spark = machine(tmp_path, SPARK, total_gib=121.7, available_gib=115)
    settings = settings_of(tmp_path)
    own = {"embed": "Qwen/Qwen3-Embedding-4B", "rerank": "Qwen/Qwen3-Reranker-4B", "generate": "Qwen/Qwen3-4B"}
    expectation = box_preset(settings, spark, own)
    assert expectation.preset is not None and expectation.preset.name == "spark"
    figures = [phase_figures(searches(search())), phase_figures(indexing())]
    a_search, chunks = compare(expectation.preset, figures, Workload())
    assert a_search.ratio == pytest.approx(8.1 / 7.8) and chunks.ratio == pytest.approx(10_000 / (32 / 3) / 60 / 15)
    assert compare(expectation.preset, figures, Workload(candidates=20))[0].ratio is None
    assert "smaller" in compare(expectation.preset, figures, Workload(candidates=20))[0].reason
    assert a_search.note == "80 generated tokens; here 80" and chunks.note == "600 tokens a chunk; here 600"
    assert not compare(expectation.preset, figures, Workload(candidates=20))[0].note
    whole, smaller = compare(expectation.preset, figures, Workload(batch=16))
    assert whole.ratio == a_search.ratio and smaller.ratio is None and "16 chunks in place of 32" in smaller.reason
    other = box_preset(settings, spark, {**own, "embed": "intfloat/e5-small"})
    assert other.preset is None and "Qwen/Qwen3-Embedding-4B" in other.reason
    assert "other models" in named_preset("8", own).note and not named_preset("spark", own).note


def test_the_last_run_of_the_same_key_alone_is_compared(tmp_path: Path) -> None:
    path = tmp_path / ".qmdctl/bench.json"
    figures = figures_kept([phase_figures(searches(search())), phase_figures(indexing())])
    here = key_of("http://a", "http://b", {"embed": "m"}, Workload().payload())
    assert History(path).last(here, figures) is None
    History(path).add(here, "yesterday", figures)
    other = key_of("http://a", "http://b", {"embed": "m"}, Workload(candidates=20).payload())
    assert History(path).last(other, figures) is None
    last = History(path).last(here, {name: value * (2 if name.endswith("|s") else 0.5) for name, value in figures.items()})
    assert last is not None and last.at == "yesterday" and [change.slower for change in last.changes] == pytest.approx([1.0, 1.0])
    for number in range(KEPT + 5):
        History(path).add(here, str(number), figures)
    runs = json.loads(path.read_text())["runs"]
    assert len(runs) == KEPT and runs[-1]["at"] == str(KEPT + 4)
    assert [file.name for file in path.parent.iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 2, "runs": []}', '{"version": 1, "runs": 7}', "\x00", '{"version": 1, "runs": [3, {}]}']
)
def test_a_damaged_file_costs_the_comparison_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content)
    history = History(path)
    key = key_of("http://a", "", {}, {})
    assert history.last(key, {"x|s": 1.0}) is None
    history.add(key, "now", {"x|s": 1.0})
    assert History(path).last(key, {"x|s": 1.0}) is not None


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "bench.json")
    history.add({}, "now", {"x|s": 1.0})
    assert "cannot be written" in history.problem


def container(service: str, state: str = "running", **ports: int) -> Container:
    named = {f"{port[1:]}/tcp": host for port, host in ports.items()}
    return Container(service, f"qmd-{service}", "id", "image", state, "healthy", 0, False, "", 0, None, None, 1, ports=named)


def test_the_box_is_measured_at_the_ports_that_it_publishes(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    both = {"embed": container("embed", _8001=18001), "vllm": container("vllm", _8000=18000)}
    target = box(settings, both, "key")
    assert (target.embed_url, target.generate_url) == ("http://127.0.0.1:18001", "http://127.0.0.1:18000")
    assert (target.embed_key, target.generate_key) == ("key", None) and not target.laptop
    alone = box(settings, {**both, "vllm": container("vllm", "exited", _8000=18000)}, None)
    assert alone.generate_url == "" and "no expansion" in alone.notes[0]
    with pytest.raises(QmdError) as error:
        box(settings, {}, None)
    assert "qmdctl up" in error.value.fix and error.value.exit_code == 1


def test_generation_through_embed_needs_its_key(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"GENERATION_URL": "http://elsewhere:9"}, services=("embed",))
    target = box(settings, {"embed": container("embed", _8001=18001)}, "key")
    assert target.generate_url == target.embed_url and target.generate_key == "key"
    nowhere = box(settings_of(tmp_path, services=("embed",)), {"embed": container("embed", _8001=18001)}, None)
    assert nowhere.generate_url == "" and "no text is generated" in nowhere.notes[0]


@pytest.mark.parametrize("status", ["ok", "idle"])
def test_the_proof_ends_with_the_whole(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    """FAKE answers: a /health, and nothing after it, as of models that load for longer than there is time."""
    limits: list[float] = []
    now = [1000.0]

    def exchange(client: Any, method: str, url: str, seconds: float, **options: Any) -> httpx.Response:
        limits.append(seconds)
        now[0] += seconds if method == "POST" else 1.0
        if method == "POST":
            raise httpx.ReadTimeout("no answer")
        return httpx.Response(200, json={"status": status})

    monkeypatch.setattr("qmdctl.probes.exchange", exchange)
    monkeypatch.setattr("qmdctl.bench.target.time", SimpleNamespace(monotonic=lambda: now[0]))
    with pytest.raises(QmdError, match="the time was over") as error:
        prove(Target("http://a", ""), 120.0, now[0] + 20)
    assert limits == [5.0, 19.0] and "--seconds" in error.value.fix


@pytest.mark.parametrize("text", ["", "0", "65", "1,2,3,4,5", "one", "1;5", "-1"])
def test_agents_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--agents"):
        parse_agents(text)


def test_the_table_says_what_there_are_too_few_samples_for() -> None:
    run = Run(Workload(), Limits(), [searches(search(), search(rerank=7.0)), indexing(), PhaseRun(Phase("searches under indexing", 1))])
    run.shortened = ["searches, 5 agents: left out, one round takes about 40 s and 3 s are left"]
    from qmdctl.bench.expectation import Expectation

    report = Report(
        Target("http://a", "http://b", models={"embed": "m"}), run, "7f3a", [phase_figures(one) for one in run.done], Expectation(None)
    )
    text = report.text()
    assert "p95 needs 20 searches" in text and "8.10 s" in text and "10.7" in text and "no batch" in text and "left out" in text
    assert report.payload()["phases"][0]["searches"]["p95_seconds"] is None


def test_the_table_says_what_the_estimate_counts_with() -> None:
    run = Run(Workload(batch=16), Limits(), [searches(search()), indexing()])
    figures, expectation = [phase_figures(one) for one in run.done], named_preset("spark", {})
    assert expectation.preset is not None
    compared = compare(expectation.preset, figures, run.workload)
    text = Report(Target("http://a", "http://b"), run, "7f3a", figures, expectation, compared).text()
    assert "Search: the estimate counts 80 generated tokens; here 80." in text
    assert "16 chunks in place of 32" in text and "tokens a chunk" not in text
