"""`qmdctl bench`: the real workload against the running stack, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmdctl.commands.common import JsonOption, invocation
from qmdctl.commands.test import EmbedUrlOption, GenerateUrlOption

if TYPE_CHECKING:
    from qmdctl.bench.expectation import Expectation
    from qmdctl.bench.history import History
    from qmdctl.bench.load import Run
    from qmdctl.bench.report import Report
    from qmdctl.bench.target import Target
    from qmdctl.commands.common import Invocation
    from qmdctl.terminal import Terminal


def bench(
    context: typer.Context,
    embed_url: EmbedUrlOption = None,
    generate_url: GenerateUrlOption = None,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with an API key as plain text (else QMD_API_KEY; on the box one made for this call)."),
    ] = None,
    agents: Annotated[
        str, typer.Option(metavar="N,…", help="How many search at the same time; a phase of each kind for each number.")
    ] = "1,5",
    seconds: Annotated[float, typer.Option(metavar="SECONDS", min=5, max=3600, help="At most, for all requests together.")] = 120.0,
    searches: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="At most, for each agent in each phase.")] = 20,
    batches: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000, help="At most, for each client that indexes, where nobody searches.")
    ] = 50,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, max=600, help="For one request; QMD's client has 120.")] = 120.0,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare with this preset's estimates (on the box without it: the machine's own).")
    ] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Send the texts of an earlier run again; else every run has its own.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Measure indexing and searches as a QMD client does them.

    Searches alone, indexing alone, searches under indexing, each with every number of agents: chunks/s, tokens/s, search p50 and p95, the
    time of each link, bytes; compared with the preset's estimate and with the last run here. Nothing is changed. Against the stack of this
    project, else what tailscale finds, else --embed-url. Exit status 1 where nothing could be measured.
    """
    import secrets
    import time
    from dataclasses import replace

    from qmdctl.bench.load import Limits, Run
    from qmdctl.bench.target import parse_agents, prove
    from qmdctl.bench.workload import Workload
    from qmdctl.errors import ConfigurationError

    call = invocation(context)
    terminal = call.output(json_output)
    if seed is not None and not (seed.isascii() and seed.isalnum() and len(seed) <= 32):
        raise ConfigurationError(f"--seed: {seed!r} is not one to 32 letters and digits", "--seed 7f3a")
    limits = Limits(seconds, searches, batches, parse_agents(agents))
    if preset is not None:
        from qmdctl.presets import find_preset

        find_preset(preset)
    target, history = find_target(context, call, embed_url, generate_url, key_file)
    terminal.note(
        f"Measuring {target.embed_url}{f' and {target.generate_url}' if target.generate_url else ''} for up to {seconds:g} s …", "dim"
    )
    end = time.monotonic() + seconds
    prove(target, timeout, end)
    run = Run(Workload(expansion=target.expansion), replace(limits, seconds=max(end - time.monotonic(), 0.0)))
    seed = seed or secrets.token_hex(3)
    measure(terminal, target, run, seed, timeout)
    report = report_of(target, run, seed, history, expectation_of(target, preset))
    terminal.result(report.text(), report.payload())
    if run.interrupted:
        terminal.note("Interrupted: what was measured until then is above. The stack goes on.", "yellow")
        raise typer.Exit(130)
    if not run.measured:
        terminal.note("✗ Nothing could be measured", "red")
        terminal.note("  → qmdctl health; or more time: --seconds 600")
        raise typer.Exit(1)


def find_target(
    context: typer.Context, call: Invocation, embed_url: str | None, generate_url: str | None, key_file: Path | None
) -> tuple[Target, History]:
    """The stack of the project that is here, where it runs; else the addresses that are given or found."""
    from qmdctl.bench import target
    from qmdctl.bench.history import FILE, History
    from qmdctl.commands.health import api_key
    from qmdctl.engine import Engine
    from qmdctl.errors import MissingError
    from qmdctl.laptop.key import read_key
    from qmdctl.laptop.names import choose_names
    from qmdctl.laptop.project import found_project
    from qmdctl.lock import FOLDER
    from qmdctl.state import default_path

    here = found_project(call)
    note = here.problem
    if not (embed_url or generate_url) and here.settings is not None:
        try:
            engine = Engine.connect()
        except MissingError as error:
            note = f"No stack of {here.settings.project.folder} here ({error.message}): measured from afar."
        else:
            containers = engine.containers(here.settings.name)
            key = context.with_resource(api_key(here.settings, key_file))
            return target.box(here.settings, containers, key), History(here.settings.project.folder / FOLDER / FILE)
    key = read_key(key_file)
    names = choose_names(embed_url, generate_url, here.hostnames)
    names.notes += [note] if note else []
    return target.laptop(names, key), History(default_path().with_name(FILE))


def measure(terminal: Terminal, target: Target, run: Run, seed: str, timeout: float) -> None:
    """Fill `run`. Ctrl-C ends it early and is noted there."""
    import asyncio
    import contextlib

    from qmdctl.bench.client import Client
    from qmdctl.bench.load import Load
    from qmdctl.bench.progress import REDRAW_SECONDS, make_progress
    from qmdctl.bench.texts import Notes
    from qmdctl.bench.workload import Requests

    async def all_of_it() -> None:
        embed = Client(target.embed_url, target.embed_key, timeout, target.trust(target.embed_url))
        generation = None
        if target.expansion is not None:
            generation = Client(target.generate_url, target.generate_key, timeout, target.trust(target.generate_url))
        load = Load(run, Requests(Notes(seed), run.workload, target.models.get("generate", "")), embed, generation, progress)

        async def tick() -> None:
            while True:
                await asyncio.sleep(REDRAW_SECONDS)
                progress.tick()

        ticking = asyncio.create_task(tick())
        try:
            await load.all()
        finally:
            ticking.cancel()

    with make_progress(terminal, run.limits.seconds) as progress, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(all_of_it())


def expectation_of(target: Target, preset: str | None) -> Expectation:
    from qmdctl.bench.expectation import Expectation, box_preset, named_preset

    if preset is not None:
        return named_preset(preset, target.models)
    if target.settings is None:
        return Expectation(None, "which one is meant for the box is not known here; --preset NAME compares")
    from qmdctl.hardware import find_hardware

    return box_preset(target.settings, find_hardware(), target.models)


def report_of(target: Target, run: Run, seed: str, history: History, expectation: Expectation) -> Report:
    """Compare, advise, and keep the run's figures for the next one. One that was interrupted is not kept."""
    import time

    from qmdctl.bench.advice import Measured, advise
    from qmdctl.bench.expectation import compare
    from qmdctl.bench.figures import failures, phase_figures
    from qmdctl.bench.history import figures_kept, key_of
    from qmdctl.bench.report import Report
    from qmdctl.bench.target import restarted

    phases = [phase_figures(one) for one in run.done]
    report = Report(target, run, seed, phases, expectation, notes=list(target.notes))
    if expectation.preset is not None:
        report.compared = compare(expectation.preset, phases, run.workload)
    key = key_of(target.embed_url, target.generate_url, target.models, run.workload.payload())
    kept = figures_kept(phases)
    report.last = history.last(key, kept)
    if kept and not run.interrupted:
        history.add(key, time.strftime("%Y-%m-%d %H:%M"), kept)
    report.notes += [note for note in (history.problem, restarted(target)) if note]
    report.advice = advise(Measured(phases, target.facts, target.round_trips, target.settings or {}, target.models, failures(run)))
    return report
