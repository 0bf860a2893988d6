"""qmdctl and the whole stack, on the tests' own Docker engine: `sudo .venv/bin/python -m benchmarks.stack [--write-readme]`.

    --help, status     each beside a bare interpreter, in turn; medians
    up                 cold (models from a local hub, images there) and warm, seconds per phase
    generation         the same requests to vLLM directly and through the embed service, in turn; medians

Nothing is asserted. Models are small (MiniLM, SmolLM2 in float32), and the hub is a local stand-in, so a download costs nothing here.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from demo import smollm2
from demo.processes import minilm
from tests.support.hub import FakeHub
from tests.support.qmdctl_cli import Qmdctl
from tests.support.stack_images import embed_image, vllm_image
from tests.support.stack_project import Stack, bridge_address, make_project

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- stack: written by python -m benchmarks.stack --write-readme -->\n", "<!-- end of stack -->\n"
PROCESS_ROUNDS, REQUEST_ROUNDS, WARM_STARTS = 21, 30, 3
NAME = "qmdbench"
Row = tuple[str, str, str]


def main() -> int:
    vllm, _ = vllm_image("0.12"), embed_image()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="qmd-bench-") as scratch, FakeHub(bridge_address()) as hub:
        home = Path(scratch)
        hub.add("org/embed", Path(minilm()))
        hub.add("org/generate", smollm2.prepare())
        models = {"EMBED_MODEL": "org/embed", "RERANK_MODEL": "org/embed", "VLLM_MODEL": "org/generate"}
        values = {**models, "COMPOSE_PROJECT_NAME": NAME, "VLLM_IMAGE": vllm, "VLLM_MAX_MODEL_LEN": "2048", "HF_ENDPOINT": hub.url}
        qmdctl = make_project(home / "project", home, values)
        stack = Stack(qmdctl, hub)
        try:
            rows += starts(stack)
            rows += processes(qmdctl)
            rows += generation(stack)
        finally:
            stack.close(NAME)
    text = report(rows)
    print(text)
    if "--write-readme" in sys.argv:
        page = README.read_text()
        README.write_text(page[: page.index(BEGIN) + len(BEGIN)] + text + page[page.index(END) :])
    return 0


def starts(stack: Stack) -> list[Row]:
    """`up` to ready: once with nothing in the volumes, then with everything there."""
    cold = stack.up()
    warm = []
    for _ in range(WARM_STARTS):
        stack.qmdctl.run("down")
        warm.append(stack.up())
    middle = sorted(warm, key=lambda one: one["seconds"])[len(warm) // 2]
    ratio = f"{cold['seconds'] / middle['seconds']:.1f} × the warm one"
    return [
        ("cold `up` to ready", f"{cold['seconds']:.0f} s ({phases(cold)})", ratio),
        ("warm `up` to ready", f"{middle['seconds']:.0f} s ({phases(middle)})", "1"),
    ]


def phases(start: dict[str, Any]) -> str:
    """The slower service's phases."""
    vllm = start["phases"]["vllm"]
    return "vLLM: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in vllm.items() if seconds >= 1)


def processes(qmdctl: Qmdctl) -> list[Row]:
    """Commands beside a bare interpreter, in turn."""
    bare = [sys.executable, "-c", "pass"]
    measured: dict[str, list[float]] = {"bare": [], "--help": [], "status": []}
    for _ in range(PROCESS_ROUNDS):
        for name, command in (("bare", bare), ("--help", qmdctl.command("--help")), ("status", qmdctl.command("status"))):
            measured[name].append(seconds_of(lambda command=command: run(command, qmdctl)))  # type: ignore[misc]
    middle = {name: statistics.median(values) for name, values in measured.items()}
    rows = [("a bare interpreter", f"{middle['bare'] * 1e3:.0f} ms", "1")]
    for name in ("--help", "status"):
        rows.append((f"`qmdctl {name}`", f"{middle[name] * 1e3:.0f} ms", f"{middle[name] / middle['bare']:.1f}"))
    return rows


def generation(stack: Stack) -> list[Row]:
    """The same request to vLLM and through the forwarder, in turn: a short answer, a longer one, and the first token of a stream."""
    rows = []
    with httpx.Client(trust_env=False, timeout=120) as client:
        for words, tokens in (("1 token", 1), ("32 tokens", 32)):
            direct, forwarded = turns(lambda url, tokens=tokens: ask(client, url, tokens), stack)  # type: ignore[misc]
            rows.append(row(f"chat, {words}: through embed beside vLLM directly", direct, forwarded))
        direct, forwarded = turns(lambda url: first_token(client, url), stack)
        rows.append(row("chat, first token of a stream", direct, forwarded))
    return rows


def row(name: str, direct: float, forwarded: float) -> Row:
    return (
        name,
        f"{forwarded * 1e3:.1f} ms, directly {direct * 1e3:.1f} ms",
        f"{forwarded / direct:.2f} ({(forwarded - direct) * 1e3:+.1f} ms)",
    )


def turns(request: Callable[[str], None], stack: Stack) -> tuple[float, float]:
    """Medians: (vLLM directly, through embed)."""
    urls = (stack.url("vllm"), stack.url("embed"))
    for url in urls:
        request(url)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REQUEST_ROUNDS):
        for url, taken in zip(urls, times, strict=True):
            taken.append(seconds_of(lambda url=url: request(url)))  # type: ignore[misc]
    return statistics.median(times[0]), statistics.median(times[1])


def body(tokens: int, stream: bool = False) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Write three search queries about watering a cactus."}]
    return {"messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": stream}


def ask(client: httpx.Client, url: str, tokens: int) -> None:
    answer = client.post(f"{url}/v1/chat/completions", json=body(tokens))
    answer.raise_for_status()


def first_token(client: httpx.Client, url: str) -> None:
    with client.stream("POST", f"{url}/v1/chat/completions", json=body(8, stream=True)) as answer:
        answer.raise_for_status()
        next(line for line in answer.iter_lines() if '"content":"' in line.replace(" ", "") and '"content":""' not in line.replace(" ", ""))


def run(command: list[str], qmdctl: Qmdctl) -> None:
    subprocess.run(
        command, env=qmdctl.full_environment(), cwd=qmdctl.home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )


def seconds_of(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def report(rows: list[Row]) -> str:
    machine = f"{os.cpu_count()} cores, no GPU, {platform.system()}, Python {platform.python_version()}, vLLM 0.12 for CPUs in float32"
    lines = [f"- {machine}; medians of {PROCESS_ROUNDS} calls, {REQUEST_ROUNDS} requests, {WARM_STARTS} warm starts", ""]
    lines += ["| what | measured | ratio |", "|---|---|---|", *(f"| {name} | {value} | {ratio} |" for name, value, ratio in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
