"""Measure the packed engine on an NVIDIA GPU, on the true shapes with random weights, beside what the card and its peers can do.

    python -m benchmarks.gpu                   at most 8 minutes
    python -m benchmarks.gpu --minutes 3       less: what does not fit is left out, and that is said
    python -m benchmarks.gpu --write-readme    and put the table into benchmarks/README.md
    python -m benchmarks.gpu --device cpu      tries the code without a GPU: tiny shapes, figures without meaning

Each row is printed as it is measured, and all so far are in benchmarks/results/gpu.json. Nothing is asserted. benchmarks/GPU.md says what
the rows mean.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_contestants import OURS, Contestant, Library, NotHere, Ours, Padded, Rows, Vllm, fuse_norms, on_disk
from benchmarks.gpu_rates import SQUARE, breakdown, fp8_rate, idle_share, linear_rate, median, model_rate, peak, synchronise
from benchmarks.gpu_shapes import EMBED, RERANK_LONG, SHAPES, WORKS, Shape, Work, bytes_needed, flops, make_body, tiny

HERE = Path(__file__).parent
BEGIN, END = "<!-- gpu: written by python -m benchmarks.gpu --write-readme -->\n", "<!-- end of gpu -->\n"
ROUNDS = 3
VLLM_SECONDS = 150  # what its start may take; with less left it is left out
VLLM_MEMORY = 0.35  # of the card
SMALLER = 20  # times shorter that texts are on a CPU
PACKAGES = ("torch", "transformers", "sentence-transformers", "flash-attn", "vllm")
ATTENTIONS = ("sdpa", "flash_attention_2")
HEADER = "| model | work | who | time | tokens/s | TFLOP/s | of the card's | memory | × |\n|---|---|---|---|---|---|---|---|---|"


@dataclass
class Run:
    """What is measured, and where it goes. `data` is what results/gpu.json holds."""

    device: str
    layers: int | None
    ends: float
    file: Path
    data: dict[str, Any] = field(
        default_factory=lambda: {"card": {}, "rates": {}, "rows": [], "other": {}, "agreement": {}, "left_out": []}
    )

    def left(self) -> float:
        return self.ends - time.monotonic()

    def say(self, text: str) -> None:
        print(text, flush=True)

    def leave_out(self, what: str) -> None:
        if what in self.data["left_out"]:
            return
        self.data["left_out"].append(what)
        self.say(f"left out: {what}")
        self.save()

    def save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.data, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _arguments(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device, so there is nothing to measure here.")
        return 3 if "gpu" in os.environ.get("REQUIRE", "").split(",") else 0
    run = Run(asked.device, asked.layers, time.monotonic() + 60 * asked.minutes, Path(asked.output) / "gpu.json")
    measure(run, asked.model or list(SHAPES))
    report = render(run.data)
    print("\n" + report)
    if asked.write_readme:
        write_readme(HERE / "README.md", report)
    return 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="most that it may take (default 8)")
    parser.add_argument("--write-readme", action="store_true", help="put the table into benchmarks/README.md")
    parser.add_argument("--model", action="append", choices=list(SHAPES), help="only this size (may be repeated)")
    parser.add_argument("--output", default=str(HERE / "results"), help="folder for gpu.json")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: try the code, with tiny shapes")
    parser.add_argument("--layers", type=int, help="only so many layers (to try the code)")
    return parser.parse_args(arguments)


def measure(run: Run, models: Sequence[str]) -> None:
    """All of it, the most wanted first."""
    _card(run)
    run.say("\n" + HEADER)
    shapes = [shape for shape in (_shape(run, name) for name in models) if _fits(run, shape)]
    for shape in shapes:
        _model(run, shape)
        _free(run)
    # Last, because nothing bounds the time that another program takes to start.
    for shape in shapes[::-1]:
        with ExitStack() as stack:
            try:
                _beside_vllm(run, shape, stack)
            except Exception as error:  # whatever it runs into is no reason to lose what was measured
                run.leave_out(f"vLLM on {shape.name}: {_first(error)}")
        _free(run)


def _shape(run: Run, name: str) -> Shape:
    shape = SHAPES[name]
    if run.device == "cpu":
        return tiny(shape, run.layers or 2)
    return replace(shape, layers=run.layers) if run.layers else shape


def _fits(run: Run, shape: Shape) -> bool:
    if run.device != "cuda":
        return True
    need, there = bytes_needed(shape, sum(EMBED.own)), torch.cuda.mem_get_info()[0]
    if need > there:
        run.leave_out(f"{shape.name}: it needs about {need / 1e9:.0f} GB and {there / 1e9:.0f} GB are free")
    return need <= there


def _free(run: Run) -> None:
    gc.collect()
    if run.device == "cuda":
        torch.cuda.empty_cache()


def _card(run: Run) -> None:
    """The machine and what its matrix products reach."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    card: dict[str, Any] = {"name": platform.processor() or platform.machine(), "memory_gb": 0.0, "capability": "", "versions": versions}
    cuda = run.device == "cuda"
    if cuda:
        about = torch.cuda.get_device_properties(0)
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        card |= {"name": about.name, "memory_gb": about.total_memory / 1e9, "capability": capability, "cuda": torch.version.cuda}
    run.data["card"] = card
    size = SQUARE if cuda else 128
    rates = run.data["rates"]
    rates["bfloat16"] = linear_rate(run.device, size, size, size)
    run.say(f"{card['name']}: {rates['bfloat16'] / 1e12:.4g} TFLOP/s in a bfloat16 matrix product of {size}³")
    try:
        if not cuda:
            raise RuntimeError("not a GPU")
        rates["float8"] = fp8_rate(size)
        run.say(f"and {rates['float8'] / 1e12:.4g} in float8, which the service does not use")
    except (RuntimeError, AttributeError, NotImplementedError, TypeError, ValueError) as error:
        run.leave_out(f"float8 matrix product: {_first(error)}")
    run.save()


def _model(run: Run, shape: Shape) -> None:
    body, head = _made(run, shape)
    tokens = sum(EMBED.own) if run.device == "cuda" else 64
    rate = run.data["rates"][shape.name] = model_rate(run.device, shape, tokens)
    run.say(f"<!-- {shape.name}: its linear layers alone: {rate / 1e12:.4g} TFLOP/s -->")
    ours = Ours(body, shape, head)
    run.data["card"]["attention"] = "varlen" if ours.varlen else "sdpa"
    contestants: list[Contestant] = [ours]
    makers: list[Callable[[], Contestant]] = [partial(Ours, body, shape, head, f"{OURS}, RMSNorm fused (a trial)", fuse_norms)]
    for attention in ATTENTIONS:
        makers += [partial(Library, body, attention), partial(Padded, body, head, attention)]
    for make in makers:
        try:
            contestants.append(make())
        except NotHere as error:
            run.leave_out(str(error))
    for work in _works(run):
        compare(run, shape, work, contestants)
    _others(run, shape, ours)


def _made(run: Run, shape: Shape) -> tuple[Any, torch.Tensor]:
    """The model and the reranker's row, the same at every call."""
    body = make_body(shape, run.device, torch.bfloat16)
    generator = torch.Generator(run.device).manual_seed(1)
    return body, torch.randn(shape.hidden, device=run.device, generator=generator) / shape.hidden**0.5


def _works(run: Run) -> list[Work]:
    return [work if run.device == "cuda" else work.smaller(SMALLER) for work in WORKS]


def _beside_vllm(run: Run, shape: Shape, stack: ExitStack) -> None:
    if run.device != "cuda":
        raise NotHere("it is measured on a GPU only")
    if importlib.util.find_spec("vllm") is None:  # before gigabytes are written for it
        raise NotHere("it is not installed")
    if run.left() < VLLM_SECONDS:
        raise NotHere(f"{run.left():.0f} s are left, and its start takes up to {VLLM_SECONDS} s")
    body, head = _made(run, shape)
    folder = stack.enter_context(on_disk(body, max(20 * 10**9 if shape.parameters > 2e9 else 0, 3 * shape.parameters)))
    _free(run)
    ours, vllm = Ours(body, shape, head), Vllm(folder, VLLM_MEMORY)
    for work in _works(run):
        compare(run, shape, work, [ours, vllm], beside="vLLM's turns")


def compare(run: Run, shape: Shape, work: Work, contestants: Sequence[Contestant], beside: str = "") -> None:
    """One request, everyone in turn, ROUNDS times after one that does not count."""
    contestants = [one for one in contestants if work.role in one.roles]
    samples: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for round_ in range(ROUNDS + 1):
        sequences = work.sequences(shape.vocabulary, seed=1000 + round_)
        answers: dict[str, Rows] = {}
        for one in contestants:
            if run.left() < 0:
                if not samples:
                    run.leave_out(f"{shape.name}, {work.name}: the time is used up")
                    return
                break
            one.begin()
            try:
                synchronise(run.device)
                with peak(run.device) as found:
                    started = time.perf_counter()
                    rows = one.run(work.role, sequences)
                    seconds = time.perf_counter() - started
            except torch.OutOfMemoryError as error:
                run.leave_out(f"{shape.name}, {work.name}, {one.name}: {_first(error)}")
                contestants = [other for other in contestants if other is not one]
                continue
            finally:
                one.end()
            if round_:
                samples.setdefault(one.name, []).append(seconds)
                peaks[one.name] = max(peaks.get(one.name, 0.0), found[0])
            elif rows is not None:
                answers[one.name] = rows
        if not round_:
            _agree(run, f"{shape.name}, {work.name}", work, answers)
    for one in contestants:
        if one.name in samples:
            _row(run, shape, work, one, samples, peaks[one.name], beside)
    run.save()


def _agree(run: Run, what: str, work: Work, answers: dict[str, Rows]) -> None:
    """How near the others' answers are to ours: the smallest cosine, or the largest difference of a score."""
    mine = answers.get(OURS)
    for name, rows in answers.items():
        if mine is None or name == OURS:
            continue
        if work.role == "embed":
            run.data["agreement"][f"{what}, {name}: smallest cosine"] = _least_cosine(mine, rows)
        else:
            run.data["agreement"][f"{what}, {name}: largest difference of a score"] = float(np.abs(_sigmoid(mine) - _sigmoid(rows)).max())


def _least_cosine(mine: Rows, rows: Rows) -> float:
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(rows, axis=1)
    return float(((mine * rows).sum(1) / lengths).min())


def _sigmoid(logits: Rows) -> Rows:
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def _row(run: Run, shape: Shape, work: Work, one: Contestant, samples: dict[str, list[float]], peak_gb: float, beside: str) -> None:
    seconds = median(samples[one.name])
    together = one.shares and work.prefix > 0
    needed = flops(shape, work.own, work.prefix) if together else flops(shape, [work.prefix + n for n in work.own])
    row = {
        "model": shape.name,
        "work": work.name,
        "who": one.name + (f" (in {beside})" if beside and one.name == OURS else ""),
        "seconds": samples[one.name],
        "median": seconds,
        "tokens_per_second": work.tokens / seconds,
        "flops": needed,
        "flops_per_second": needed / seconds,
        "of_the_card": needed / seconds / run.data["rates"]["bfloat16"],
        "of_the_linear_layers": needed / seconds / run.data["rates"][shape.name],
        "peak_gb": peak_gb,
        # How many times longer this one takes than this service.
        "times": seconds / median(samples[OURS]) if OURS in samples else None,
    }
    run.data["rows"].append(row)
    run.say(line(row))


def _others(run: Run, shape: Shape, ours: Ours) -> None:
    """What keeps the device from more: idle time between micro-batches, and what it does beside matrix products."""
    if run.left() < 0:
        run.leave_out(f"{shape.name}: idle time and breakdown, the time is used up")
        return
    cuda = run.device == "cuda"
    small = Work("", "embed", (500,) * 16)
    work = small if cuda else small.smaller(SMALLER)
    ours.begin()
    batches = [work.sequences(shape.vocabulary, seed) for seed in range(20)]
    found: dict[str, Any] = {"idle_between_micro_batches": idle_share(ours.executor, "embed", batches, run.device)}
    for request in (EMBED, RERANK_LONG):
        sequences = (request if cuda else request.smaller(SMALLER)).sequences(shape.vocabulary, 7)
        try:
            found[request.name] = breakdown(lambda s=sequences, r=request.role: ours.run(r, s), run.device)  # type: ignore[misc]
        except RuntimeError as error:  # a machine may forbid profiling
            run.leave_out(f"{shape.name}: breakdown of {request.name}, {_first(error)}")
    ours.end()
    run.data["other"][shape.name] = found
    run.save()


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    times = "" if row["times"] is None else f"{row['times']:.2f}"
    return (
        f"| {row['model']} | {row['work']} | {row['who']} | {row['median'] * 1e3:,.1f} ms | {row['tokens_per_second']:,.0f} | "
        f"{row['flops_per_second'] / 1e12:,.3g} | {row['of_the_card']:.2f} | {row['peak_gb']:.1f} GB | {times} |"
    )


def render(data: dict[str, Any]) -> str:
    """The report in Markdown."""
    card, rates = data["card"], data["rates"]
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    products = ", ".join(f"{name} {rate / 1e12:,.4g}" for name, rate in rates.items())
    parts = [
        f"- Card: {card['name']}, {card['memory_gb']:.0f} GB, compute capability {card['capability'] or 'none'}; "
        f"attention: {card.get('attention', 'none')}\n- Versions: {versions}\n"
        f"- Measured rates of matrix products, TFLOP/s: {products} "
        "(bfloat16 and float8: one large product; a model's name: its own linear layers)",
        "\n".join([HEADER, *(line(row) for row in data["rows"])]),
    ]
    for name, found in data["other"].items():
        lines = [
            f"- {name}: {found['idle_between_micro_batches']:.1%} of the time between 20 micro-batches of 8,000 tokens none was computed"
        ]
        for work, split in found.items():
            if isinstance(split, dict):
                shares = ", ".join(f"{kind} {share:.0%}" for kind, share in split["shares"].items())
                others = "; ".join(f"{kernel} {share:.1%}" for kernel, share in split["others"].items())
                lines.append(f"- {name}, {work}: device busy {split['busy']:.0%} of the time (profiled); of it {shares}. Most: {others}")
        parts.append("\n".join(lines))
    for title, entries in (
        ("Against this service's answers", [f"- {what}: {value:.5f}" for what, value in data["agreement"].items()]),
        ("Left out", [f"- {what}" for what in data["left_out"]]),
    ):
        if entries:
            parts.append(f"{title}:\n\n" + "\n".join(entries))
    return "\n\n".join(parts) + "\n"


def write_readme(file: Path, report: str) -> None:
    """Between the markers; behind everything else where the file has none yet."""
    text = file.read_text()
    if BEGIN not in text:
        text += f"\n{BEGIN}{END}"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    file.write_text(f"{before}{BEGIN}\n{report}\n{END}{after}")


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
