"""`qmdctl doctor`: every check, with cause and fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qmdctl.commands.common import JsonOption, invocation, mode_flags

if TYPE_CHECKING:
    from qmdctl.checks import Finding

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failure": ("✗", "red"), "skipped": ("-", "dim")}


def doctor(
    context: typer.Context,
    cpu: Annotated[bool, typer.Option("--cpu", help="As `qmdctl up --cpu`: without a GPU.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="As `qmdctl up --gpu`.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Check the machine and the settings.

    `qmdctl up` runs the same checks first, but for that of sidecars which run already. Exit status 0 with at most warnings, 2 when only
    the configuration is wrong, 3 otherwise.
    """
    from qmdctl.checks import NAMES, RUNNING, Context, exit_code, run_checks
    from qmdctl.settings import load_settings

    call = invocation(context)
    terminal = call.output(json_output)
    project = call.project()
    settings = load_settings(project, mode_flags(cpu, gpu, project), need_env=False)
    if not settings.project.env_path.exists():
        terminal.note("There is no .env yet; the defaults are checked. qmdctl init writes one.", "yellow")
    findings = []
    for finding in run_checks(Context(settings), (*NAMES, *RUNNING)):
        findings.append(finding)
        if not json_output:
            terminal.line(as_line(finding))
    failed = sum(finding.level == "failure" for finding in findings)
    warned = sum(finding.level == "warning" for finding in findings)
    data = {"ok": not failed, "failures": failed, "warnings": warned, "findings": [finding.payload() for finding in findings]}
    terminal.result(f"{failed} failed, {warned} warnings, {len(findings)} findings." if failed or warned else "All is well.", data)
    if failed:
        raise typer.Exit(exit_code(findings))


def as_line(finding: Finding) -> str:
    """One finding for people; the reason and the fix below it where something is wrong."""
    text = f"{MARKS[finding.level][0]} {finding.check:<18} {finding.what}"
    if finding.level in ("failure", "warning"):
        text += f"\n    {finding.why}" if finding.why else ""
        text += f"\n    → {finding.fix}" if finding.fix else ""
    return text
