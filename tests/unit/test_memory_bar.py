"""Who has the memory: a card, memory that processor and GPU share, a machine without a GPU; vLLM's KV cache from its metrics."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from embed_service.engine.memory import MemoryMeter, weights_bytes
from embed_service.generation.kv_cache import KvCacheProbe, kv_cache_of, on_this_machine
from embed_service.scheduler.service import Service
from embed_service.settings import Settings
from embed_service.telemetry.memory import KvCache, memory_bar

GB = 10**9
# From a real vLLM's /metrics, shortened.
VLLM = """\
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="qwen"} 0.25
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",gpu_memory_utilization="0.2",kv_cache_memory_bytes="%s",num_gpu_blocks="2603"} 1.0
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 128 GB of which 100 are available; this service's two processes have 1 and 2."""
    (tmp_path / "meminfo").write_text(
        "MemTotal:       125000000 kB\nMemFree:  5 kB\nMemAvailable:   97656250 kB\nHugePages_Total:       0\n"
    )
    for pid, kilobytes in ((7, 976_562), (8, 1_953_125)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(f"Name:\tpython\nVmRSS:\t{kilobytes} kB\nThreads:\t9\n")
    return tmp_path


def rounded(parts: dict[str, int]) -> dict[str, float]:
    return {name: round(size / GB, 1) for name, size in parts.items()}


def test_a_card(proc: Path) -> None:
    engine = {"weights": 16 * GB, "reserved": 18 * GB, "free": 2 * GB, "total": 48 * GB, "unified": False}
    bar = memory_bar(engine, [7, 8], KvCache(6 * GB, 0.4), proc)
    assert bar is not None and (bar.kind, bar.total) == ("card", 48 * GB)
    assert rounded(bar.parts) == {"weights": 16, "service": 2, "kv_cache": 6, "other": 22, "free": 2}  # type: ignore[comparison-overlap]


def test_unified_memory_is_counted_by_the_kernel(proc: Path) -> None:
    """CUDA's own figure of free memory, here 3 GB, has the kernel's file cache among what is taken."""
    engine = {"weights": 16 * GB, "reserved": 17 * GB, "free": 3 * GB, "total": 120 * GB, "unified": True}
    bar = memory_bar(engine, [7, 8], KvCache(None, 0.05), proc)
    assert bar is not None and (bar.kind, bar.total) == ("unified", 128 * GB)
    assert rounded(bar.parts) == {"weights": 16, "service": 4, "vllm": 6.4, "other": 1.6, "free": 100}  # type: ignore[comparison-overlap]


def test_a_machine_without_a_gpu(proc: Path) -> None:
    bar = memory_bar({"weights": GB, "unified": False}, [7, 8, 404], KvCache(6 * GB, None), proc)
    assert bar is not None and bar.kind == "machine"
    assert rounded(bar.parts) == {"weights": 1, "service": 2, "other": 25, "free": 100}  # type: ignore[comparison-overlap]
    before = memory_bar({}, [7], None, proc)
    assert before is not None and rounded(before.parts) == {"weights": 0, "service": 1, "other": 27, "free": 100}  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    "engine",
    [
        {"weights": 40 * GB, "reserved": 50 * GB, "free": 20 * GB, "total": 24 * GB, "unified": False},
        {"weights": 4 * GB, "reserved": 1 * GB, "free": 30 * GB, "total": 24 * GB, "unified": False},
        {"weights": 300 * GB, "unified": False},
    ],
)
def test_parts_that_were_measured_at_different_moments_still_fill_the_bar(proc: Path, engine: dict[str, int]) -> None:
    bar = memory_bar(engine, [7, 8], KvCache(6 * GB, None), proc)
    assert bar is not None
    assert sum(bar.parts.values()) == bar.total
    assert min(bar.parts.values()) >= 0


def test_a_cache_that_cannot_be_here_is_on_another_card(proc: Path) -> None:
    engine = {"weights": 8 * GB, "reserved": 9 * GB, "free": 14 * GB, "total": 24 * GB, "unified": False}
    bar = memory_bar(engine, [], KvCache(6 * GB, 0.2), proc)
    assert bar is not None and "kv_cache" not in bar.parts


@pytest.mark.parametrize(
    ("values", "ready", "known"),
    [
        ({"device": "cuda"}, True, {"weights": GB}),
        ({"device": "cuda"}, False, None),
        ({"device": "auto"}, False, None),
        ({"device": "cpu"}, False, {}),
        ({"device": "cpu", "engines": "ray"}, True, None),
        ({"device": "cuda", "engines": "ray", "ray_engines": 1}, True, None),
    ],
)
def test_the_memory_of_the_models_is_told_where_it_is_this_machine_s(values: dict[str, Any], ready: bool, known: object) -> None:
    """Without an engine nobody knows whose memory a GPU has; on a processor it is the machine's whatever the engine does."""
    service = Service(Settings(**values))
    if ready:
        service.engine.ready.set()
        service.engine.keepers[0].state.memory = {"weights": GB}
    assert service.memory() == known


def test_a_device_that_was_found_counts() -> None:
    service = Service(Settings(device="auto"))
    service.engine.keepers[0].state.device = "cpu"
    assert service.memory() == {}


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert memory_bar({"weights": GB, "unified": True}, [1], None, tmp_path) is None


def test_what_vllm_says_of_its_cache() -> None:
    assert kv_cache_of(VLLM % 6_000_000_000) == KvCache(6_000_000_000, 0.2, 0.25)
    assert kv_cache_of(VLLM % "None") == KvCache(None, 0.2, 0.25)
    assert kv_cache_of("# TYPE llamacpp:requests_processing gauge\nllamacpp:requests_processing 0\n") is None
    with pytest.raises(ValueError):
        kv_cache_of("<html>not metrics {")


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://vllm:8000", True),
        ("http://localhost:8000", True),
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("http://10.0.0.5:8000", False),
        ("https://gpu.example.com", False),
    ],
)
def test_only_this_machine_s_cache_is_in_the_bar(url: str, here: bool) -> None:
    assert on_this_machine(url) == here
    assert KvCacheProbe(url).due == here
    assert not KvCacheProbe(None).due


@pytest.fixture
def vllm() -> Iterator[HTTPServer]:
    """FAKE vLLM: its metrics alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (VLLM % 123).encode() if self.path == "/metrics" else b"{}"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_probe_asks_seldom_and_never_raises(vllm: HTTPServer) -> None:
    probe = KvCacheProbe(f"http://127.0.0.1:{vllm.server_port}")
    assert probe.due
    asyncio.run(probe.ask())
    assert probe.last == KvCache(123, 0.2, 0.25)
    assert not probe.due
    away = KvCacheProbe("http://127.0.0.1:9")
    asyncio.run(away.ask())
    assert away.last is None


def test_the_weights_of_a_model_are_counted_once() -> None:
    class Head:
        def __init__(self, module: torch.nn.Module) -> None:
            self.module, self.again, self.row, self.name = module, module, torch.zeros(10), "head"

    Head.__module__ = "embed_service.engine.heads"
    linear = torch.nn.Linear(100, 10)
    assert weights_bytes([Head(linear), Head(linear)]) == 4 * (1000 + 10) + 2 * 40
    assert weights_bytes([object()]) == 0
    assert MemoryMeter("cpu", 5).read() == {"weights": 5, "unified": False}
    assert MemoryMeter("mps", 5).read()["unified"] is True
