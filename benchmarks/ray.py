"""What engines behind Ray cost and bring, on this machine: `python -m benchmarks.ray [--rounds N]`.

Four services take turns: one engine as a child process with one thread and with two, and a Ray cluster with one engine and with two, of one
thread each. The hop is the difference between the first and the third; the second and the fourth have the same cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx

from benchmarks import machine
from benchmarks.texts import chunks
from tests.support.ray_cluster import Cluster
from tests.support.service import ROOT, ServiceProcess, poll

QUERIES = 60  # one after the other
CLIENTS, TEXTS, REQUESTS = 8, 32, 16
WORDS = (8, 80)  # of a text
SHORT = "how the sidecar keeps its name"
CHILD, WIDE, ONE, TWO = "a child, 1 thread", "a child, 2 threads", "Ray, 1 engine of 1 thread", "Ray, 2 engines of 1 thread"


def query_ms(client: httpx.Client) -> float:
    """Median over QUERIES requests of one short text, in ms."""
    seconds = []
    for number in range(QUERIES):
        began = time.perf_counter()
        client.post("/v1/embeddings", json={"input": f"{SHORT} {number}"}).raise_for_status()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


def texts_per_second(client: httpx.Client) -> float:
    """CLIENTS at a time, TEXTS a request."""
    texts = chunks(REQUESTS * TEXTS, *WORDS)
    parts = [texts[n * TEXTS : (n + 1) * TEXTS] for n in range(REQUESTS)]
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for answer in pool.map(lambda part: client.post("/v1/embeddings", json={"input": part}), parts):
            answer.raise_for_status()
    return len(texts) / (time.perf_counter() - began)


def measure(services: Mapping[str, ServiceProcess], rounds: int) -> dict[str, dict[str, list[float]]]:
    """{service: {"query": ms of each round, "bulk": texts/s of each round}}, the services in turn within a round."""
    figures: dict[str, dict[str, list[float]]] = {name: {"query": [], "bulk": []} for name in services}
    work: dict[str, Callable[[httpx.Client], float]] = {"query": query_ms, "bulk": texts_per_second}
    with ExitStack() as stack:
        clients = {name: stack.enter_context(service.client()) for name, service in services.items()}
        for client in clients.values():
            texts_per_second(client)  # the token budget finds its size
        for number in range(rounds):
            for kind, do in work.items():
                for name, client in clients.items():
                    figures[name][kind].append(do(client))
                    sys.stderr.write(f"round {number + 1} of {rounds}: {kind}, {name}: {figures[name][kind][-1]:.1f}\n")
    return figures


def render(figures: Mapping[str, Mapping[str, list[float]]]) -> str:
    """The medians as a markdown table, with their ratio to one engine as a child with one thread."""
    medians = {name: {kind: statistics.median(values) for kind, values in kinds.items()} for name, kinds in figures.items()}
    base = medians[CHILD]
    lines = ["| engines | a short query, ms | ratio | 8 × 32 texts, texts/s | ratio |", "|---|---|---|---|---|"]
    for name, found in medians.items():
        query, bulk = found["query"], found["bulk"]
        lines.append(f"| {name} | {query:.1f} | {query / base['query']:.2f} | {bulk:.0f} | {bulk / base['bulk']:.2f} |")
    hop = medians[ONE]["query"] - base["query"]
    told = machine.describe()
    lines += [
        "",
        f"The hop: {hop:.1f} ms of a short query, and {medians[ONE]['bulk'] / base['bulk']:.2f} times the throughput of one engine. "
        f"Two engines of one thread against one of two: {medians[TWO]['bulk'] / medians[WIDE]['bulk']:.2f} times its throughput.",
        "",
        f"{told['processor']}, {told['cores']} cores, {told['system']}; load of the machine as it was measured: {told['load']}; "
        f"medians of {len(figures[CHILD]['query'])} rounds.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.ray", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        cluster = Cluster(folder, {"PYTHONPATH": str(ROOT)})
        stack.callback(cluster.close)
        cluster.start_head()
        cluster.start_worker(engines=3)
        ray = {
            "ENGINES": "ray",
            "RAY_ADDRESS": cluster.address,
            "RAY_AUTH_TOKEN_PATH": str(cluster.token),
            "RAY_GPUS_PER_ENGINE": "0",
            "CPU_THREADS": "1",
        }
        settings = {
            CHILD: {"CPU_THREADS": "1"},
            WIDE: {"CPU_THREADS": "2"},
            ONE: {**ray, "RAY_ENGINES": "1"},
            TWO: {**ray, "RAY_ENGINES": "2"},
        }
        services = {}
        for number, (name, environment) in enumerate(settings.items()):
            sys.stderr.write(f"starting {name}\n")
            service = ServiceProcess({**environment, "PYTHONPATH": str(ROOT)}, folder / f"{number}.log")
            services[name] = stack.enter_context(service)
            service.wait_healthy(300)
        poll(lambda: all(e["phase"] == "ready" for e in services[TWO].health()[1]["engines"]), 300, "both engines")
        table = render(measure(services, rounds))
    sys.stdout.write(table + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
