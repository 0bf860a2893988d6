"""`qmdctl upgrade`: to a release or another image; what does not answer real requests is gone back from."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from qmdctl.project import Project
    from qmdctl.releases.checkout import Checkout, Target
    from qmdctl.releases.upgrade import Plan
    from qmdctl.settings import Settings
    from qmdctl.terminal import Terminal


def upgrade(
    context: typer.Context,
    release: Annotated[str | None, typer.Argument(metavar="RELEASE", help="A tag, branch or commit; none: the newest release tag.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SERVICE=NAME",
            help="An image alone: vllm=NAME, sidecar=NAME, embed=NAME; vllm= for the release's own. May be repeated.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with one that was cut off.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Go back from one that was cut off.")] = False,
    skip_checks: Annotated[bool, typer.Option("--skip-checks", help="Do not check the machine before.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Upgrade to a release of this project, or to another image.

    Builds and pulls while the old one serves, then switches and sends real requests. Where anything fails it goes back by itself and the
    old one serves again (exit status 1). Settings that the release renamed are carried over in .env.
    """
    from qmdctl.errors import ConfigurationError
    from qmdctl.lock import exclusive
    from qmdctl.releases import unfinished

    call = invocation(context)
    terminal = call.output(json_output)
    if sum((bool(release or image), resume, undo)) > 1:
        raise ConfigurationError("--resume and --undo are for one that was cut off", "give one of them, and neither release nor image")
    if dry_run and (resume or undo):
        raise ConfigurationError("--dry-run shows what an upgrade would change, not what is left of one", "leave it out")
    project = call.project()
    with exclusive(project.folder, "upgrade"):
        if resume or undo:
            settle(project, terminal, resume)
            return
        if not unfinished.settled(project, terminal, "qmdctl upgrade"):
            run(project, terminal, release, image or [], yes=yes, dry_run=dry_run, skip_checks=skip_checks)


def run(
    project: Project, terminal: Terminal, release: str | None, named: list[str], *, yes: bool, dry_run: bool, skip_checks: bool
) -> None:
    from qmdctl.engine import Engine
    from qmdctl.errors import InterruptedByUser
    from qmdctl.releases import prepare, switch, upgrade
    from qmdctl.releases.checkout import Checkout
    from qmdctl.releases.child import runs_from
    from qmdctl.releases.record import Release
    from qmdctl.settings import load_settings

    settings, engine = load_settings(project), Engine.connect()
    checkout = Checkout(project.folder)
    try:
        asked = upgrade.parse_images(named, settings)
        target = find(checkout, release, terminal) if release or not named else None
        if target is None and not named:
            here = checkout.release().text
            text = f"The newest release is in this checkout already ({here}). An image alone: qmdctl upgrade --image SERVICE=NAME"
            terminal.result(text, {"status": "current", "release": here})
            return
        plan = upgrade.make_plan(checkout, settings, target, asked)
        if plan.changes_files:
            checkout.need_clean()
        if plan.nothing:
            terminal.result(f"Nothing to do: {plan.title} is what is here.", {"status": "current", "plan": plan.data})
            return
        switch.need_same_files(engine, settings, terminal)
        pulls = upgrade.prepare_images(plan, engine, settings, skip_checks)
        plan.lines += [f"pulled while the old one serves: {name}" for name in pulls]
        plan.data["pulls"] = pulls
        text = "\n".join([f"{plan.title[0].upper()}{plan.title[1:]}:", *(f"  {line}" for line in plan.lines)])
        if dry_run:
            terminal.result(f"{text}\nNothing was changed (--dry-run).", {"status": "planned", "plan": plan.data})
            return
        terminal.note(text)
        switch.ask(terminal, "Upgrade", yes)
        before, excused = switch.found_running(engine, settings, terminal)
        prepare.pull(engine, pulls, plan.settings, terminal)
        if upgrade.needs_build(plan, project.folder):
            build(project, settings, plan, terminal)
        own = runs_from(project.folder)
        steps = upgrade.make_steps(plan, checkout, engine, settings, excused, skip_checks, own)
    except KeyboardInterrupt:
        raise InterruptedByUser("Interrupted. Nothing was changed; what was pulled or built is kept.", "qmdctl upgrade") from None
    finally:
        prepare.remove_tree(project.folder)
    to = Release(commit=target.commit, tag=target.name if not target.branch else "") if target else checkout.release()
    record = switch.switch(project, engine, terminal, "upgrade", plan.title, steps, to)
    if plan.changes_files and not own:
        where = shlex.quote(str(project.folder))
        commands = f"uv tool install --reinstall {where}, or pipx install --force {where}"
        terminal.note(f"This qmdctl is installed apart from the checkout and is still the old release's: {commands}", "yellow")
    switch.report(project, terminal, "upgrade", plan.title, before, record, {"plan": plan.data})


def find(checkout: Checkout, release: str | None, terminal: Terminal) -> Target | None:
    """The target, after a look at the remote; one that is away is only told. None where the newest release is here."""
    from qmdctl.errors import ConfigurationError, MissingError, QmdError
    from qmdctl.releases import upgrade

    if not checkout.is_one:
        raise ConfigurationError(
            f"{checkout.folder} is no git checkout with a commit, so there is no release to go to",
            "an image alone: qmdctl upgrade --image vllm=NAME",
            checkout.git("status", "--short", check=False).stderr,  # git's own words, where it refuses to look (another owner's folder)
        )
    try:
        checkout.fetch()
    except MissingError:
        raise
    except QmdError as error:
        terminal.note(f"The remote was not reached ({error.message}): what this checkout knows of it counts.", "yellow")
    return upgrade.choose(checkout, release)


def build(project: Project, settings: Settings, plan: Plan, terminal: Terminal) -> None:
    """The release's embed image, from its files beside the checkout."""
    from qmdctl import env_file
    from qmdctl.lock import FOLDER
    from qmdctl.releases import images, prepare

    terminal.note("The embed image is built while the old one serves.", "dim")
    flags = {"EMBED_IMAGE": images.NEXT, "COMPOSE_PROJECT_NAME": settings.name}
    folder = project.folder / FOLDER / prepare.TREE
    prepare.build(prepare.settings_there(project.folder, folder, env_file.parse(plan.env), flags), terminal)


def settle(project: Project, terminal: Terminal, resume: bool) -> None:
    """--resume and --undo."""
    from qmdctl.engine import Engine
    from qmdctl.releases import switch, unfinished
    from qmdctl.releases.journal import Journal
    from qmdctl.releases.record import History

    journal = Journal.read(project.folder)
    if journal is None:
        terminal.result("Nothing was cut off.", {"status": "nothing"})
        return
    terminal.note(unfinished.told(journal))
    if not resume:
        said = unfinished.undo(project, journal, terminal)
        terminal.result(f"Gone back. {said}", {"status": "undone", "title": journal.title})
        return
    engine, before = Engine.connect(), History(project.folder).current
    record = switch.resume(project, engine, terminal, journal)
    switch.report(project, terminal, journal.verb, journal.title, before, record, {})
