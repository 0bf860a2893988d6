"""Measure this service beside its peers and print the table.

    make bench                          all of it, at most 25 minutes on two cores
    make bench ARGS="--only queries"    a part (may be repeated)
    BENCH=quick make bench              short texts, one round, at most 4 minutes
    make bench ARGS=--write-readme      and put the table into benchmarks/README.md

The figures also go to benchmarks/results/latest.json. Nothing is asserted: noise is about 10 %, so compare ratios within one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, models, responses
from benchmarks.plan import FULL, QUICK, Clock
from benchmarks.report import render
from benchmarks.reranking import rerank
from benchmarks.results import Results
from benchmarks.scenarios import Work, embeddings, memory, start_up
from benchmarks.servers import Infinity, Vllm
from benchmarks.texts import chunks, digest
from benchmarks.workers import SentenceTransformers

HERE = Path(__file__).parent
PARTS = ("answer", "start", "embeddings", "queries", "memory", "rerank-xlmr", "rerank-qwen")
BEGIN, END = "<!-- measured: written by make bench ARGS=--write-readme -->\n", "<!-- end of measured -->\n"


def main() -> int:
    arguments = _arguments()
    plan = QUICK if os.environ.get("BENCH") == "quick" else FULL
    if arguments.minutes:
        plan = dataclasses.replace(plan, seconds=60 * arguments.minutes)
    started = time.monotonic()
    clock = Clock(plan.seconds)
    about = machine.describe()
    with SentenceTransformers("float32") as library:
        library.wait_ready()
        assert isinstance(library, SentenceTransformers)
        about["gflops"] = library.ask(call="machine")["gflops"]
    # bfloat16 only where the processor computes with it: elsewhere nobody would use it.
    faster = max(about["gflops"], key=about["gflops"].get)
    _say("preparing models and texts")
    results = Results()
    for kind in (Vllm, Infinity):
        if not kind.installed():
            results.left_out[kind.name] = "it is not installed: `make bench` installs it"
            _say(f"{kind.name} is left out: {results.left_out[kind.name]}")
    texts = chunks(max(*(cell.texts for cell in plan.cells), plan.bulk_texts), *plan.words)
    work = Work(texts, _token_counts(texts), arguments.dtype or faster, plan, clock, results, _say)
    _measure(work, arguments.only or PARTS)
    inputs = {"texts": len(texts), "tokens": sum(work.tokens), "digest": digest(texts), "dtype": work.dtype, "faster": faster}
    inputs["seconds"] = time.monotonic() - started
    report = render(about, plan, inputs, results)
    print(report)
    _write(about, plan.name, inputs, results)
    if arguments.write_readme:
        _write_readme(report)
    return 0


def _measure(work: Work, parts: tuple[str, ...]) -> None:
    if "answer" in parts:
        responses.measure(work.results)
    if "start" in parts:
        start_up(work)
    if {"embeddings", "queries"} & set(parts):
        embeddings(work, parts)
    if "memory" in parts:
        memory(work)
    if {"rerank-xlmr", "rerank-qwen"} & set(parts):
        rerank(work, parts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="only this part (may be repeated)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="this precision; otherwise the one that the processor is faster in"
    )
    parser.add_argument("--minutes", type=float, help="end the rounds in this time instead of the plan's")
    parser.add_argument("--write-readme", action="store_true", help="put the table into benchmarks/README.md")
    return parser.parse_args()


def _token_counts(texts: list[str]) -> list[int]:
    """As the embedding model cuts them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(models.minilm() / "tokenizer.json"))
    tokenizer.enable_truncation(models.TOKENS)
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def _write(about: dict[str, Any], plan: str, inputs: dict[str, Any], results: Results) -> None:
    file = HERE / "results" / "latest.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"plan": plan, "machine": about, "inputs": inputs, **results.to_json()}, indent=1) + "\n")
    _say(f"written to {file.relative_to(HERE.parent)}")


def _write_readme(report: str) -> None:
    file = HERE / "README.md"
    before, _, rest = file.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n{report}\n{END}{after}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        sys.exit(f"error: {error}")
