"""`qmdctl migrate`: from the seed's native setup to this stack, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from qmdctl.native.found import Found
    from qmdctl.native.journal import Entry, Journal
    from qmdctl.native.plan import Plan
    from qmdctl.native.steps import Machine
    from qmdctl.native.values import Values
    from qmdctl.project import Project
    from qmdctl.proposal import Proposal
    from qmdctl.settings import Settings
    from qmdctl.terminal import Terminal

NOTHING = "Nothing of the seed's native setup was found: no unit qmd-embed, no other container qmd-vllm, no Tailscale Service of that name."


def migrate(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is found and what would be done.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Go back to the native setup.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Values of .env give way to those found.")] = False,
    keep_services: Annotated[
        bool, typer.Option("--keep-services", help="This machine's own tailscaled goes on serving the names: no sidecars.")
    ] = False,
    clear_serve: Annotated[
        bool, typer.Option("--clear-serve", help="Also end the machine's own `tailscale serve` entries for the two ports.")
    ] = False,
    start: Annotated[bool, typer.Option("--up", help="Start the stack afterwards.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Take over from the seed's native setup (systemd unit qmd-embed, container qmd-vllm): models, ports, names and cache.

    The unit is disabled and the container renamed, neither is removed, so that --undo can go back.
    """
    from qmdctl.engine import Engine
    from qmdctl.native.journal import Journal
    from qmdctl.native.steps import Machine
    from qmdctl.settings import load_settings

    call = invocation(context)
    terminal = call.output(json_output)
    project = call.project()
    settings = None if undo else load_settings(project, need_env=False)
    journal = Journal(project.folder, caller())
    machine = Machine(project.folder, Engine.connect(), journal, terminal, caller())
    if settings is None:
        go_back(machine, project, yes, dry_run)
        return
    found = look(machine, settings)
    if not found.anything:
        report_nothing(terminal, found, journal)
        return
    plan = planned(terminal, machine, settings, found, overwrite, keep_services, clear_serve)
    if plan.kept and terminal.interactive and not (yes or dry_run) and ask_overwrite(terminal, plan):
        plan = planned(terminal, machine, settings, found, True, keep_services, clear_serve)
    data = {"found": found.payload(), "plan": plan.payload(), "done": []}
    if not plan.steps and not plan.problems:
        report_already(terminal, journal, data, plan, found)
    else:
        text = as_text(found, plan)
        if dry_run:
            terminal.result(f"{text}\nNothing was changed (--dry-run).", {"status": "planned", **data})
            return
        terminal.note(text)
        take_over(machine, plan, data, yes, start)
    if start:
        again(terminal, project, "up")


def caller() -> tuple[int, int] | None:
    """Who called sudo: the files made are theirs."""
    from qmdctl.commands.init import sudo_user

    return sudo_user()


def look(machine: Machine, settings: Settings) -> Found:
    from qmdctl.native.found import find

    renamed = {entry.facts["id"]: entry.facts["name"] for entry in machine.journal.open if entry.kind == "container"}
    return find(machine.engine, settings.name, settings.project.folder, renamed, machine.runner)


def planned(
    terminal: Terminal, machine: Machine, settings: Settings, found: Found, overwrite: bool, keep_services: bool, clear_serve: bool
) -> Plan:
    """The plan. Where there is no .env, the rest of it is what `qmdctl init` proposes for this hardware."""
    from qmdctl.commands.init import owner, rootless
    from qmdctl.native.plan import clear_steps, env_text, make_plan
    from qmdctl.native.values import values_from

    image = settings.keys_known["VLLM_IMAGE"].default if "VLLM_IMAGE" in settings.keys_known else ""
    values = values_from(
        found,
        caller=owner(),
        rootless=rootless(),
        keep_services=keep_services,
        clear_serve=clear_serve,
        default_image=image,
    )
    project = settings.project
    proposal = None if project.env_path.exists() else propose_env(terminal, values)
    plan = make_plan(found, values, machine.engine, project, env_text(project, values, proposal, overwrite))
    if clear_serve:
        first = next((i for i, step in enumerate(plan.steps) if step.kind in ("unit", "container")), len(plan.steps))
        plan.steps[first:first] = clear_steps(found)
    if proposal is not None and proposal.budget:
        plan.notes += [f"{problem.message} → {problem.fix}" for problem in proposal.budget.problems]
    return plan


def ask_overwrite(terminal: Terminal, plan: Plan) -> bool:
    """Whether .env gives up the values that it has otherwise. InterruptedByUser for Ctrl-C."""
    from qmdctl.errors import InterruptedByUser

    terminal.note("\n".join(plan.kept_lines()))
    try:
        return typer.confirm("Replace these values in .env", default=False, err=True)
    except typer.Abort:
        raise InterruptedByUser("Nothing was changed.") from None


def propose_env(terminal: Terminal, values: Values) -> Proposal:
    """What init would write, with the values found in it."""
    from pathlib import Path

    from qmdctl.commands.init import container_user
    from qmdctl.hardware import find_hardware
    from qmdctl.native.values import Value
    from qmdctl.proposal import describe, propose

    hardware = find_hardware()
    terminal.note(describe(hardware))
    for key, value in container_user(terminal).items():
        values.values.setdefault(key, Value(key, value, "you"))
    chosen = values.plain()
    cache = chosen.get("HF_CACHE_DIR")
    return propose(hardware, None, cpu=None, chosen=chosen, hub_cache=Path(cache) / "hub" if cache else None)


def as_text(found: Found, plan: Plan) -> str:
    lines = ["Found:", *(f"  - {line}" for line in found.lines()), "", "This will be done:" if plan.steps else "", *plan.lines()]
    return "\n".join(lines)


def report_nothing(terminal: Terminal, found: Found, journal: Journal) -> None:
    lines = [NOTHING, *(f"  - {line}" for line in found.lines())]
    lines += [f"  - port {port} is held by {who}" for port, who in found.strangers().items()]
    lines.append("A new installation begins with: qmdctl init" + (" --hf-cache FOLDER" if any(one.bytes for one in found.caches) else ""))
    terminal.result("\n".join(lines), {"status": "nothing", "found": found.payload(), "plan": None, "done": done_before(journal)})


def report_already(terminal: Terminal, journal: Journal, data: dict[str, Any], plan: Plan, found: Found) -> None:
    """Nothing is left to do: what an earlier run did."""
    entries = list(reversed(journal.open))
    lines = ["Taken over already:" if entries else "Nothing is left to take over: .env has the values, and nothing of the seed's runs."]
    lines += [f"  - {entry.at}: {entry.title}" for entry in entries]
    lines += [] if entries else [f"  - {line}" for line in found.lines()]
    if plan.kept:
        lines += plan.lines()
    lines.append("Next: qmdctl up" + ("; back: qmdctl migrate --undo" if entries else ""))
    terminal.result("\n".join(lines), {**data, "status": "already", "done": done_before(journal)})


def done_before(journal: Journal) -> list[dict[str, str]]:
    return payload(list(reversed(journal.open)))


def payload(entries: list[Entry]) -> list[dict[str, str]]:
    return [{"kind": entry.kind, "title": entry.title, "state": entry.state, "at": entry.at} for entry in entries]


def take_over(machine: Machine, plan: Plan, data: dict[str, Any], yes: bool, start: bool) -> None:
    """Ask, then take the steps. An error where a step must not be taken, nobody can be asked, or root is needed and refused."""
    from qmdctl.native.apply import apply, need_root

    terminal = machine.terminal
    if plan.problems:
        raise plan.problems[0]
    agree(terminal, f"Do this ({len(plan.steps)} step{'s' * (len(plan.steps) > 1)})", yes)
    need_root([command for step in plan.steps for command in step.shown()], machine, "migrate")
    machine.journal.prepare()
    entries = apply(plan.steps, machine)
    lines = ["Taken over:", *(f"  - {entry.title}" for entry in entries)]
    if plan.owner:
        lines += ["Yours to do:", *(f"  - {task}" for task in plan.owner)]
    lines.append("" if start else "Next: qmdctl up; back: qmdctl migrate --undo")
    terminal.result("\n".join(lines), {**data, "status": "migrated", "done": payload(entries)})


def go_back(machine: Machine, project: Project, yes: bool, dry_run: bool) -> None:
    """Reverse what the journal has, after the stack is down: both want the same ports and names."""
    from qmdctl.native import apply
    from qmdctl.native.steps import back_title

    terminal, entries = machine.terminal, machine.journal.open
    if not entries:
        was = any(True for _ in machine.journal)
        text = "Everything was undone already." if was else "There is nothing to undo: no migration was made here."
        terminal.result(text, {"status": "undone" if was else "nothing", "plan": [], "done": []})
        return
    name, usable = project_name(project)
    stops = "qmdctl down" if usable else "docker stop and docker rm"  # `down` refuses a misspelt key
    up = sorted(one.name for one in machine.engine.containers(name).values())
    titles = [back_title(entry.kind, entry.facts) for entry in entries]
    lines = ["This will be done:"]
    lines += [f"  1. {stops} (the stack's containers {', '.join(up)} hold the ports and names)"] if up else []
    lines += [f"  {number}. {title}" for number, title in enumerate(titles, 2 if up else 1)]
    data: dict[str, Any] = {
        "plan": [{"kind": entry.kind, "title": title} for entry, title in zip(entries, titles, strict=True)],
        "stops": up,
    }
    if dry_run:
        terminal.result("\n".join([*lines, "Nothing was changed (--dry-run)."]), {"status": "planned", **data, "done": []})
        return
    terminal.note("\n".join(lines))
    agree(terminal, "Go back", yes)
    apply.need_root(apply.root_commands(entries, machine), machine, "migrate --undo")
    if up and usable:
        again(terminal, project, "down")
    elif up:
        machine.change(["docker", "stop", *up])
        machine.change(["docker", "rm", *up])
    remarks = apply.go_back(entries, machine)
    text = "The native setup is back." if not remarks else "The native setup is back, but:\n" + "\n".join(f"  - {one}" for one in remarks)
    terminal.result(text, {"status": "undone", **data, "remarks": remarks, "done": payload(entries)})


def project_name(project: Project) -> tuple[str, bool]:
    """Compose's name of the project, and whether `qmdctl down` takes its .env: going back must work with one that it refuses."""
    import os

    from qmdctl import env_file
    from qmdctl.errors import ConfigurationError
    from qmdctl.settings import load_settings

    try:
        return load_settings(project, need_env=False).name, True
    except ConfigurationError:
        key = "COMPOSE_PROJECT_NAME"
        try:
            there = env_file.read(project.env_path).values.get(key)
        except ConfigurationError:
            there = None
        return os.environ.get(key) or there or "qmd", False


def agree(terminal: Terminal, question: str, yes: bool) -> None:
    """ConfigurationError where nobody can be asked, InterruptedByUser for no."""
    from qmdctl.errors import ConfigurationError, InterruptedByUser

    if yes:
        return
    if not terminal.interactive:
        raise ConfigurationError("This changes the machine as shown above, and there is no terminal to ask", "add --yes to agree")
    try:
        agreed = typer.confirm(question, default=False, err=True)
    except typer.Abort:
        agreed = False
    if not agreed:
        raise InterruptedByUser("Nothing was changed.")


def again(terminal: Terminal, project: Project, verb: str) -> None:
    """Another verb of qmdctl, in a process of its own; its output goes to stderr. QmdError with its exit status when it fails."""
    from qmdctl.errors import QmdError
    from qmdctl.process import run
    from qmdctl.releases.child import command

    terminal.echo_command(f"qmdctl {verb}")
    done = run(command(project.folder, verb), capture=False, check=False)
    if not done.ok:
        error = QmdError(f"qmdctl {verb} failed", f"qmdctl {verb}; the migration itself is in the journal (qmdctl migrate)")
        error.exit_code = done.returncode if done.returncode > 0 else 1
        raise error
