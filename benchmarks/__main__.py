"""Measure this service beside its peers and print the table.

    make bench                          all of it, at most 20 minutes on two cores
    BENCH=quick make bench              short texts, one round, at most 3 minutes
    make bench ARGS=--write-readme      and put the table into benchmarks/README.md

The figures also go to benchmarks/results/latest.json. Nothing is asserted: noise is about 10 %, so compare ratios within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, models, responses
from benchmarks.plan import FULL, QUICK, Clock
from benchmarks.report import render
from benchmarks.results import Results
from benchmarks.scenarios import Work, measure
from benchmarks.servers import Infinity, SentenceTransformers
from benchmarks.texts import chunks, digest

HERE = Path(__file__).parent
LEAST_SHARE = 0.2  # of the whole time: with less left no further precision is begun
BEGIN, END = "<!-- measured: written by make bench ARGS=--write-readme -->\n", "<!-- end of measured -->\n"


def main() -> int:
    arguments = _arguments()
    plan = QUICK if os.environ.get("BENCH") == "quick" else FULL
    started = time.monotonic()
    clock = Clock(plan.seconds)
    _say("preparing models and texts")
    work = _work(max(cell.texts for cell in plan.cells), *plan.words)
    about = machine.describe()
    with SentenceTransformers(work.embed, work.rerank, "float32") as library:
        assert isinstance(library, SentenceTransformers)
        library.wait_ready()
        about["gflops"] = library.ask(call="machine")["gflops"]
    results = Results()
    if not Infinity.installed():
        _say("infinity is not installed, so it is left out: `make bench` installs it into .venv-peers")
    dtypes = arguments.dtype or _dtypes(about["gflops"])
    for number, dtype in enumerate(dtypes):
        if number and clock.left() < plan.seconds * LEAST_SHARE:
            _say(f"{dtype} is left out: this machine took too long for {', '.join(dtypes[:number])} (is something else running?)")
            break
        measure(dtype, plan, Clock(clock.left() / (len(dtypes) - number)), work, results, _say)
    results.response = responses.measure()
    inputs = {"texts": len(work.texts), "tokens": sum(work.tokens), "digest": digest(work.texts), "seconds": time.monotonic() - started}
    report = render(about, plan, inputs, results)
    print(report)
    _write(about, plan.name, inputs, results)
    if arguments.write_readme:
        _write_readme(report)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-readme", action="store_true", help="put the table into benchmarks/README.md")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"], help="only this precision (may be repeated)")
    return parser.parse_args()


def _dtypes(gflops: dict[str, float]) -> list[str]:
    """bfloat16 only where the processor computes with it: elsewhere nobody would use it."""
    if gflops["bfloat16"] > gflops["float32"]:
        return ["float32", "bfloat16"]
    _say("bfloat16 is left out: this processor is slower with it than with float32")
    return ["float32"]


def _work(count: int, least: int, most: int) -> Work:
    from tokenizers import Tokenizer

    embed, rerank = models.minilm(), models.reranker()
    texts = chunks(count, least, most)
    tokenizer = Tokenizer.from_file(str(embed / "tokenizer.json"))
    tokenizer.enable_truncation(models.TOKENS)
    return Work(texts, [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)], embed, rerank)


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
