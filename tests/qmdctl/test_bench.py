"""`qmdctl bench` against the real service and a scripted generation server: what it says must add up; no time is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qmdctl.bench.figures import P95_SAMPLES
from qmdctl.cli import Invocation, app
from qmdctl.errors import ConfigurationError
from tests.generation.scripted import Call, ScriptedServer
from tests.qmdctl.conftest import Run
from tests.qmdctl.projects import settings_of
from tests.qmdctl.test_bench_figures import container
from tests.service.conftest import metric
from tests.support.service import ROOT, ServiceProcess, free_port, poll

EXPANDED = "lex: backup disk\nvec: what to do when the disk is full\nhyde: A full disk stops the backup.\nvec: nothing in common"
GENERATED = 42
CUT = 16  # tokens


def expand(call: Call) -> None:
    message = {"role": "assistant", "content": EXPANDED}
    usage = {"prompt_tokens": 90, "completion_tokens": GENERATED, "total_tokens": 90 + GENERATED}
    call.answer(200, {"choices": [{"index": 0, "message": message}], "usage": usage})


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that cuts every text after a few tokens, so that a whole workload is quick; it keeps results as in the field."""
    environment = {"MAX_INPUT_TOKENS": str(CUT), "RESULT_CACHE_MB": "64", "LOAD_WAIT_SECONDS": "1", "REQUEST_DEADLINE_SECONDS": "5"}
    with ServiceProcess(environment, tmp_path_factory.mktemp("bench") / "service.log") as process:
        process.wait_healthy()
        yield process


@pytest.fixture(scope="module")
def writer() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        server.chat = expand
        yield server


@pytest.fixture
def bench(qmdctl: Run) -> Callable[..., dict[str, Any]]:
    """Run it with --json; the document, after its exit status was looked at."""

    def run(*arguments: str, status: int = 0, **environment: str) -> dict[str, Any]:
        done = qmdctl("bench", "--json", *arguments, **environment)
        assert done.returncode == status, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    return run


def start(folder: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
    """(the process, running, with --json; the file that its stderr goes to)."""
    log = folder / "stderr"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "qmdctl", "bench", "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
        )
    return process, log


def phase(report: dict[str, Any], name: str, agents: int = 1) -> dict[str, Any]:
    found: list[dict[str, Any]] = [one for one in report["phases"] if (one["name"], one["agents"]) == (name, agents)]
    assert len(found) == 1, report["phases"]
    return found[0]


def asked(service: ServiceProcess, route: str) -> float:
    return metric(service, f'embed_requests_total{{route="{route}",status="200"}}')


def test_a_whole_run_adds_up(bench: Callable[..., dict[str, Any]], short: ServiceProcess, writer: ScriptedServer, tmp_path: Path) -> None:
    routes = ("/v1/embeddings", "/v1/rerank")
    before = {route: asked(short, route) for route in routes}
    writer.calls.clear()
    arguments = ("--embed-url", short.url, "--generate-url", writer.url, "--searches", "2", "--batches", "2", "--seed", "7f3a")
    first = bench(*arguments, "--agents", "2,1")
    assert [(one["name"], one["agents"]) for one in first["phases"]] == [
        (name, agents) for agents in (1, 2) for name in ("searches", "indexing", "searches under indexing")
    ]
    assert not first["failures"] and not first["interrupted"] and first["workload"] == {
        "batch": 32, "candidates": 40, "expansion": "chat", "max_tokens": 400, "seed": "7f3a",
    }  # fmt: skip
    for one in first["phases"]:
        check_phase(one, first["workload"])
    check_bytes(first)
    counted = {kind: figures["requests"] for kind, figures in first["bytes"].items()}
    searches = sum(one["searches"]["count"] for one in first["phases"] if one["searches"])
    assert counted["expansion"] == counted["embedding"] == counted["rerank"] == searches == 2 + 2 + 4 + 4
    # The service saw these requests, the two of the proof and those of the warm-up, and none besides but those that were cut.
    seen = sum(asked(short, route) - before[route] for route in routes)
    computed = sum(counted[kind] for kind in ("embedding", "rerank", "indexing"))
    warming = first["warm_up_requests"] - 1  # one of them was an expansion
    cut = sum(one["cut_requests"] for one in first["phases"])
    assert computed + warming + 2 <= seen <= computed + warming + 2 + cut
    assert len(writer.calls) == searches + 2
    assert all(call.headers["cache-control"] == "no-cache" for call in writer.calls)
    assert first["models"]["generate"] == "served" and writer.calls[-1].body["model"] == "served"
    # The same texts again: no cache answers, and the last run is there to compare with.
    again = bench(*arguments, "--agents", "1")
    assert metric(short, 'embed_cache_hits_total{role="embed"}') == metric(short, 'embed_cache_hits_total{role="rerank"}') == 0
    assert first["last_run"] is None
    compared = {figure["figure"]: figure for figure in again["last_run"]["figures"]}
    mine = compared["searches, 1 agent: search p50"]
    assert mine["now"] == phase(again, "searches")["searches"]["p50_seconds"]
    assert mine["last"] == phase(first, "searches")["searches"]["p50_seconds"]
    assert mine["slower"] == pytest.approx(mine["now"] / mine["last"] - 1, abs=1e-3)
    assert [path.name for path in (tmp_path / "state/qmdctl").iterdir() if "bench" in path.name] == ["bench.json"]


def check_phase(one: dict[str, Any], workload: dict[str, Any]) -> None:
    assert (one["searches"] is None) == (one["name"] == "indexing")
    assert one["failed_searches"] == one["cut_searches"] == 0
    if searches := one["searches"]:
        assert 0 < searches["p50_seconds"] <= searches["slowest_seconds"] <= one["seconds"]
        assert (searches["p95_seconds"] is None) == (searches["count"] < P95_SAMPLES)
        assert list(searches["links"]) == ["expansion", "embedding", "rerank"]
        assert sum(link["mean_seconds"] for link in searches["links"].values()) <= searches["slowest_seconds"]
        assert searches["links"]["expansion"]["mean_generated_tokens"] == GENERATED
        for name in ("embedding", "rerank"):
            check_parts(searches["links"][name])
        # The query and the two lines of the expansion that share a word with it, or the client's own two.
        assert 3 * 4 <= searches["links"]["embedding"]["mean_tokens"] <= 3 * CUT
    if index := one["indexing"]:
        assert index["chunks"] == index["batches"] * workload["batch"]
        assert index["tokens_per_chunk"] == pytest.approx(CUT)  # every chunk is longer than the service's limit
        assert index["tokens_per_second"] == pytest.approx(CUT * index["chunks_per_second"], rel=1e-2)
        assert index["minutes_per_10000_chunks"] == pytest.approx(10_000 / 60 / index["chunks_per_second"], rel=1e-2)
        check_parts(index["batch"])
    else:
        assert one["name"] != "indexing"


def check_parts(link: dict[str, Any]) -> None:
    """What the server told and the rest are the whole; the server rounds to a tenth of a millisecond."""
    parts = sum(link[f"{name}_seconds"] for name in ("queue", "tokenise", "compute", "rest"))
    assert parts == pytest.approx(link["mean_seconds"], abs=1e-3)
    assert link["compute_seconds"] > 0


def check_bytes(report: dict[str, Any]) -> None:
    each = {
        kind: (figures["sent_bytes"] / figures["requests"], figures["received_bytes"] / figures["requests"])
        for kind, figures in report["bytes"].items()
    }
    assert 60_000 < each["indexing"][0] < 85_000  # 32 chunks of about 2.2 kB, as measured of the client: 66 kB
    assert 95_000 < each["rerank"][0] < 130_000
    assert 400 < each["expansion"][0] < 1500 and 200 < each["embedding"][0] < 1500
    assert each["indexing"][1] > 32 * 384 * 2  # compressed numbers
    assert 500 < each["rerank"][1] < 6000


def test_without_generation_it_says_so(bench: Callable[..., dict[str, Any]], short: ServiceProcess, tmp_path: Path) -> None:
    state = tmp_path / "state/qmdctl"
    state.mkdir(parents=True)
    (state / "bench.json").write_text('{"version": 1, "runs": [{')
    arguments = ("--embed-url", short.url, "--agents", "1", "--searches", "2", "--preset", "cpu", "--batches", "3")
    report = bench(*arguments)
    assert any("Searches have no expansion" in note and "404" in note for note in report["notes"])
    assert report["workload"]["expansion"] is None and report["generate_url"] is None and "generate" not in report["models"]
    searches = phase(report, "searches")["searches"]
    assert list(searches["links"]) == ["embedding", "rerank"]
    assert searches["count"] == 2
    search, chunks = report["expectation"]["figures"]
    assert search["measured"] is None and "expansion" in search["reason"]
    assert chunks["measured"] == pytest.approx(phase(report, "indexing")["indexing"]["minutes_per_10000_chunks"], abs=0.01)
    assert chunks["ratio"] == pytest.approx(chunks["measured"] / chunks["estimate"], abs=1e-3)  # it is rounded
    assert "other models" in report["expectation"]["note"]
    # A damaged file costs the comparison alone, and is written anew.
    assert any("not compared with the last run" in note for note in report["notes"])
    assert len(json.loads((state / "bench.json").read_text())["runs"]) == 1


def test_on_the_box_it_is_kept_in_the_project_and_nothing_is_changed(
    short: ServiceProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """FAKE: the engine's list of containers, which names the port of the real service here."""
    settings_of(tmp_path, {"EMBED_MODEL": "a/model"}, services=("embed",))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    there = {"embed": container("embed", _8001=short.port)}
    monkeypatch.setattr("qmdctl.engine.Engine.connect", lambda: SimpleNamespace(containers=lambda name: there))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("QMD_HOME", str(tmp_path))
    arguments = ["bench", "--json", "--agents", "1", "--searches", "1", "--batches", "1"]
    app(arguments, standalone_mode=False, obj=Invocation())
    report = json.loads(capsys.readouterr().out)
    assert report["embed_url"] == short.url and report["origins"]["embed"] == "its container here"
    assert any("no text is generated here" in note for note in report["notes"])
    assert report["expectation"]["preset"] is None and "other models" in report["expectation"]["reason"]
    kept = json.loads((tmp_path / ".qmdctl/bench.json").read_text())["runs"]
    assert len(kept) == 1 and kept[0]["key"]["embed_url"] == short.url
    after = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before and sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [".qmdctl"]


def test_a_dead_stack_ends_with_a_sentence(qmdctl: Run) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = qmdctl("bench", "--embed-url", url)
    assert done.returncode == 1 and done.stdout == ""
    assert f"Nothing was measured: {url}" in done.stderr and "→" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--agents", "1,x"), "--agents"),
        (("--seed", "a b"), "--seed"),
        (("--preset", "toaster"), "toaster"),
        (("--embed-url", "http://a/b"), "--embed-url"),
        (("--key-file", "/nowhere/key"), "--key-file"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], named: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(ConfigurationError) as error:
        app(["bench", "--json", *arguments], standalone_mode=False, obj=Invocation())
    assert named in f"{error.value.message} {error.value.fix}" and error.value.fix


def test_a_refusal_is_one_document_and_status_2(qmdctl: Run) -> None:
    done = qmdctl("bench", "--json", "--agents", "0")
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 2 and "--agents" in done.stderr
    assert qmdctl("bench", "--json", "--seconds", "nan").returncode == 2


def test_failures_are_counted_and_do_not_end_it(short: ServiceProcess, tmp_path: Path) -> None:
    """The engine is killed in the first phase: the service answers 503 until it has another one, and the run goes on."""
    process, log = start(tmp_path, "--embed-url", short.url, "--agents", "1", "--batches", "2", "--seconds", "100")
    poll(lambda: "searches, 1 agent" in log.read_text() or process.poll() is not None, 60, "the first phase")
    os.kill(short.health()[1]["engine"]["pid"], signal.SIGKILL)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, log.read_text()
    report = json.loads(out)
    assert sum(counts.get("503", 0) for counts in report["failures"].values()) > 0
    failed = sum(sum(counts.values()) for kind, counts in report["failures"].items() if kind != "indexing")
    assert 0 < sum(one["failed_searches"] for one in report["phases"]) <= failed
    assert any(one["searches"] or one["indexing"] for one in report["phases"])
    assert any(advice["about"] == "failures" for advice in report["advice"])
    assert any("was started again" in note for note in report["notes"])
    short.wait_healthy()


def test_an_answer_that_does_not_come_is_a_failure(qmdctl: Run, short: ServiceProcess) -> None:
    """Generation answers the proof and then hangs: expansions time out, and nothing of it is in the figures."""

    def hang(call: Call) -> None:
        if len(server.calls) == 1:
            expand(call)
        else:
            call.wait_closed(60)

    with ScriptedServer() as server:
        server.chat = hang
        done = qmdctl(
            *("bench", "--json", "--embed-url", short.url, "--generate-url", server.url),
            *("--agents", "1", "--searches", "2", "--batches", "2", "--seconds", "60", "--timeout", "1.5"),
        )
    report = json.loads(done.stdout)
    assert done.returncode == 0  # indexing was measured
    assert report["failures"]["expansion"]["timeout"] >= 2
    searching = phase(report, "searches")
    assert searching["searches"] is None and searching["failed_searches"] == 2
    assert phase(report, "indexing")["indexing"]["chunks"] > 0


def test_ctrl_c_prints_what_there_is_and_the_service_goes_on(short: ServiceProcess, tmp_path: Path) -> None:
    process, log = start(tmp_path, "--embed-url", short.url, "--searches", "1", "--agents", "1", "--seconds", "60")
    poll(lambda: "indexing, 1 agent" in log.read_text() or process.poll() is not None, 60, "the second phase")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, log.read_text()
    report = json.loads(out)
    assert report["interrupted"] and phase(report, "searches")["searches"]["count"] == 1
    assert "Interrupted" in log.read_text() and "Traceback" not in log.read_text()
    assert not (tmp_path / "state/qmdctl/bench.json").exists()  # a part of a run is nothing to compare with
    poll(lambda: metric(short, "embed_queued_tokens") == 0, 30, "an empty queue")
    assert short.health()[0] == 200
