"""A real QMD search over docs/ on this machine: expand, embed, rerank, on small models that install as packages.

python -m demo ["a question"]      KEEP=1 leaves the servers running; PORT=8001 chooses the service's port
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from demo import display, index, processes, rankers, search
from demo.servers import GENERATION, SERVICE, Servers

QUERY = "why is search slow while a colleague indexes his notes?"
TRUE = {"1", "true", "yes", "on"}


class Timings:
    """Seconds of each step, in order."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, str]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """The yielded list takes words on what was done."""
        words: list[str] = []
        began = time.perf_counter()
        yield words
        self.rows.append((name, time.perf_counter() - began, ", ".join(words)))


def start(console: Console, servers: Servers, winner: rankers.Row, port: int) -> processes.Server:
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        lines = {name: progress.add_task(f"{name}: starting", total=1) for name in (SERVICE, GENERATION)}

        def report(name: str, phase: str) -> None:
            progress.update(lines[name], description=f"{name}: {phase}", completed=int(phase.startswith("ready")))

        return servers.start(winner, port, report)


def embed_docs(console: Console, client: httpx.Client, timings: Timings) -> index.Index:
    with timings.step("cut docs/") as words:
        chunks, limit = index.cut_docs(client)
        words.append(f"{len(chunks)} chunks of at most {limit} tokens, what the model reads")
    columns = (TextColumn("embedding docs/"), BarColumn(), MofNCompleteColumn(), TextColumn("chunks"), TimeElapsedColumn())
    with timings.step("embed docs/") as words, Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(chunks))
        made = index.build(client, chunks, lambda done: progress.advance(task, done))
        words.append(f"{len(chunks) / made.seconds:.0f} chunks/s")
        words.append(f"{made.tokens / made.seconds:.0f} tokens/s ({made.tokens} tokens, {search.BATCH} texts per request)")
    return made


def run(console: Console, query: str, port: int, keep: bool) -> None:
    timings = Timings()
    table = rankers.Table.load()
    winner = rankers.best(table.rows)
    with Servers() as servers:
        with timings.step("start") as words:
            service = start(console, servers, winner, port)
            words.append("both servers, at the same time")
        with httpx.Client(base_url=service.url, timeout=120, trust_env=False) as client:
            made = embed_docs(console, client, timings)
            console.print(f"\n[bold]Query:[/bold] {query}", highlight=False)
            with timings.step("expand the query") as words:
                expansion = search.expand(client, query)
                words.append(f"{expansion.tokens} tokens by SmolLM2 through /v1/chat/completions")
            console.print("[bold]Expansion[/bold] (/v1/chat/completions):")
            console.print(display.expansion_lines(expansion))
            with timings.step("embed the query") as words:
                texts = [query, *expansion.texts]
                candidates = made.candidates(search.embed_queries(client, texts))
                words.append(f"{len(texts)} text{'s' * (len(texts) > 1)}; the best {len(candidates)} by cosine go to the reranker")
            with timings.step("rerank") as words:
                ranked = search.rerank(client, query, candidates)
                words.append(f"{len(candidates)} passages")
        console.print(f"[bold]Reranker:[/bold] {winner.name}: the best of the table below\n", highlight=False)
        console.print(display.results(ranked))
        console.print()
        console.print(display.timings(timings.rows))
        console.print()
        console.print(display.ranking_table(table))
        console.print("\n[bold]For ~/.config/qmd/index.yml[/bold] of the fork chronologos/qmd; other clients: docs/clients.md")
        print(display.client_block(service.url))
        if keep:
            servers.keep()
            pids = " ".join(str(pid) for pid in servers.pids)
            console.print(f"Left running: {service.url}. Stop it with:", highlight=False)
            print(f"kill {pids}")
            return
        with console.status("stopping"):
            servers.stop()
        console.print(
            "Everything is stopped. `make demo KEEP=1` leaves it running; `make serve` starts the service alone.", highlight=False
        )


def main() -> int:
    console = Console()
    # Not KeyboardInterrupt: one that passes through an exec(), as in an import, makes CPython end by the signal although it was caught.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    query = " ".join(sys.argv[1:]).strip() or QUERY
    try:
        port = int(os.environ.get("PORT") or processes.free_port())
    except ValueError:
        console.print(f"[red]PORT={os.environ['PORT']!r} is not a number.")
        return 2
    try:
        run(console, query, port, os.environ.get("KEEP", "").lower() in TRUE)
    except SystemExit:
        console.print("\nInterrupted; everything is stopped.")
        raise
    except processes.StartError as error:
        console.print(f"[red]{error}", highlight=False, markup=True)
        return 1
    except httpx.HTTPError as error:
        text = error.response.text[:1000] if isinstance(error, httpx.HTTPStatusError) else ""
        console.print(f"The service did not answer as expected: {error} {text}", style="red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
