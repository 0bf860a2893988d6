"""What an upgrade changes: the release's files, images, .env; and the steps that bring it about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qmdctl import env_file
from qmdctl.engine import Container, Engine, answering
from qmdctl.errors import ConfigurationError
from qmdctl.lock import FOLDER
from qmdctl.releases import images, prepare, renames
from qmdctl.releases.checkout import SHOWN, Checkout, Target
from qmdctl.releases.journal import Step
from qmdctl.releases.record import History
from qmdctl.releases.steps import before_step, checkout_step, env_step, file_step, packages_step, up_step, verify_step
from qmdctl.settings import Settings

LOCK = "requirements/cli.txt"
MODELS = ("EMBED_MODEL", "RERANK_MODEL", "VLLM_MODEL")


@dataclass
class Plan:
    """`settings` as they will be, read from the release's files where there is a `target`; `named`: images that --image asked for."""

    title: str
    target: Target | None
    env: str
    settings: Settings
    named: dict[str, str]
    lines: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    changes_files: bool = False
    changes_env: bool = False
    packages: bool = False

    @property
    def nothing(self) -> bool:
        return not (self.changes_files or self.changes_env or self.named)


def parse_images(texts: Iterable[str], settings: Settings) -> dict[str, tuple[str, str]]:
    """{service: (setting, NAME)} of `--image SERVICE=NAME`; an empty NAME is the release's own. ConfigurationError for anything else."""
    keys = images.image_settings(settings.files)
    first = {key: service for service, key in reversed(keys.items())}  # of several services with one image
    found = {}
    for text in texts:
        service, equals, name = text.partition("=")
        if not equals:
            raise ConfigurationError(f"--image {text!r} is not SERVICE=NAME", "qmdctl upgrade --image vllm=nvcr.io/nvidia/vllm:25.12-py3")
        service = first.get("TAILSCALE_IMAGE", service) if service == "sidecar" else first.get(keys.get(service, ""), service)
        if service not in keys:
            raise ConfigurationError(f"--image: {service!r} has no setting for its image", f"choose from {', '.join(keys)}")
        env_file.quote(name)
        found[service] = (keys[service], name.strip())
    return found


def choose(checkout: Checkout, release: str | None) -> Target | None:
    """The release named, else the newest. None where the newest is in the checkout already."""
    if release:
        return checkout.resolve(release)
    tags = checkout.release_tags()
    if not tags:
        raise ConfigurationError("This project has no release tags yet", "name a branch or a commit: qmdctl upgrade main")
    target = checkout.resolve(tags[0])
    return None if checkout.contains(checkout.commit, target.commit) else target


def make_plan(checkout: Checkout, settings: Settings, target: Target | None, named: dict[str, tuple[str, str]]) -> Plan:
    """ConfigurationError where the release's files do not take this .env."""
    project = settings.project.folder
    env = env_file.parse(settings.env.render())
    history = History(project)
    here = checkout.commit if target else ""
    files = target is not None and (target.commit, target.branch) != (here, checkout.branch)
    folder = prepare.tree(checkout, target.commit) if target else project
    renamed = renames.apply(env, renames.read(folder)) if target else []
    unpinned = images.unpin(env, history, sorted(set(images.image_settings(settings.files).values()))) if target else []
    for key, name in named.values():
        if name:
            env.set(key, name)
        else:
            env.unset(key)
    after = prepare.settings_there(project, folder, env) if target else _with(settings, env)
    wanted = {service: name for service, (_, name) in named.items() if name}
    title = " with ".join(
        [
            *([f"upgrade to {target.name}"] if target else []),
            *([", ".join(f"{s}={n or 'its own'}" for s, (_, n) in named.items())] if named else []),
        ]
    )
    plan = Plan(title if target else f"image {title}", target, env.render(), after, wanted, changes_files=files)
    plan.changes_env = plan.env != settings.env.render()
    if target and files:
        plan.packages = checkout.differs(here, target.commit, LOCK)
        _say_commits(plan, checkout, here)
    plan.lines += [f"renamed since {one.since}: {one.old} is {one.new} in .env" for one in renamed]
    plan.lines += [f"{key} in .env is the release's own again, not the image kept for a rollback" for key in unpinned]
    _say_images(plan, settings, after, {key for key, _ in named.values()})
    _say_settings(plan, settings, after)
    plan.data |= {"title": plan.title, "target": target.payload() if target else None, "renamed": [one.payload() for one in renamed]}
    return plan


def _with(settings: Settings, env: env_file.EnvFile) -> Settings:
    """The same project with another .env, which is not written yet."""
    values = {
        key: env.values.get(key, "") for key in {*env.values, *settings.env.values} if env.values.get(key) != settings.env.values.get(key)
    }
    from qmdctl.settings import load_settings

    return load_settings(settings.project, values)


def _say_commits(plan: Plan, checkout: Checkout, here: str) -> None:
    assert plan.target is not None
    commit = plan.target.commit
    log, back, changelog = checkout.log(here, commit), checkout.log(commit, here), checkout.changelog(here, commit)
    plan.lines.append(f"{len(log)} commit{'s' * (len(log) != 1)} to {plan.target.name} ({commit[:9]})")
    plan.lines += [f"  {line}" for line in log[:SHOWN]] + (["  …"] if len(log) > SHOWN else [])
    if back:
        plan.lines.append(f"{len(back)} commit{'s' * (len(back) != 1)} of the present checkout are not in it")
    if changelog:
        plan.lines += ["CHANGELOG.md gains", *(f"  {line}" for line in changelog[:SHOWN]), *(["  …"] if len(changelog) > SHOWN else [])]
    plan.data |= {"commits": log, "leaves": back, "changelog": changelog}


def _say_images(plan: Plan, before: Settings, after: Settings, asked: set[str]) -> None:
    old, new, own = images.image_names(before), images.image_names(after), images.built(after)
    keys = images.image_settings(after.files)
    changed = {service: [old.get(service), name] for service, name in new.items() if old.get(service) != name}
    plan.lines += [f"image of {service}: {pair[0] or 'none'} → {pair[1]}" for service, pair in changed.items()]
    if plan.changes_files:
        for service, name in new.items():
            key = keys.get(service, "")
            if service in own and not images.taken_as_it_is(before.project.folder, name):
                plan.lines.append(f"image of {service}: built from the release's files")
            elif after.env.values.get(key) and key not in asked and after.keys_known[key].default != name:
                plan.lines.append(f"image of {service}: stays {name}, as .env says (the release's own: {after.keys_known[key].default})")
    plan.data["images"] = changed


def _say_settings(plan: Plan, before: Settings, after: Settings) -> None:
    gone = [key for key in after.env.values if key in before.keys_known and key not in after.keys_known]
    plan.lines += [f"{key} in .env is no longer read" for key in gone]
    models = {key: [before[key], after[key]] for key in MODELS if before[key] != after[key]}
    plan.lines += [
        f"{key}: {old} → {new}; it is downloaded while nothing is served, unless the cache has it" for key, (old, new) in models.items()
    ]
    plan.data |= {"no_longer_read": gone, "models": models}


def make_steps(
    plan: Plan, checkout: Checkout, engine: Engine, settings: Settings, excused: list[str], skip_checks: bool, own_code: bool
) -> list[Step]:
    """`own_code`: this qmdctl runs from the checkout."""
    project = settings.project.folder
    containers = engine.containers(settings.name)
    steps = [
        before_step(History(project).current, names_now(engine, settings, containers), any(one.running for one in containers.values()))
    ]
    listed = project / FOLDER / images.NOT_BUILT
    own = images.built(plan.settings)
    keys = images.image_settings(plan.settings.files)
    new = [
        name
        for service, name in plan.named.items()
        if service in own and not images.taken_as_it_is(project, name) and name != plan.settings.keys_known[keys[service]].default
    ]
    if new:
        before = listed.read_text(encoding="utf-8") if listed.exists() else ""
        steps.append(file_step(project, listed, before + "".join(f"{name}\n" for name in new), f"Note that {', '.join(new)} is not built"))
    if plan.changes_env:
        steps.append(env_step(settings, plan.env))
    if plan.changes_files and plan.target:
        steps.append(checkout_step(checkout, plan.target))
        if plan.packages and own_code and (project / ".venv").exists():
            steps.append(packages_step())
    return [*steps, up_step(["--skip-checks"] if skip_checks else []), verify_step(excused)]


def names_now(engine: Engine, settings: Settings, containers: dict[str, Container]) -> dict[str, str]:
    """{image name: ID} of what runs, else of what the names lead to."""
    found = {name: images.identity(engine, name)[0] for name in images.image_names(settings).values()}
    for container in containers.values():
        if not container.image.startswith("sha256:"):
            with answering():
                found[container.image] = str(engine.client.api.inspect_container(container.id)["Image"])
    return {name: image for name, image in found.items() if image and "@" not in name}


def prepare_images(plan: Plan, engine: Engine, settings: Settings, skip_checks: bool) -> list[str]:
    """Names of the images that have to be pulled. MissingError where there is no room for them."""
    now = images.image_names(settings)
    again = {name for service, name in plan.named.items() if name == now.get(service)}
    wanted = prepare.missing(engine, plan.settings, settings.project.folder, again)
    named_own = [name for name in plan.named.values() if not engine.has_image(name)]
    if not skip_checks:
        prepare.check_disk(plan.settings)
    return list(dict.fromkeys([*wanted, *named_own]))


def needs_build(plan: Plan, project: Path) -> bool:
    name = images.image_names(plan.settings).get("embed", "")
    return (
        "embed" in images.built(plan.settings)
        and "embed" not in plan.named
        and not images.taken_as_it_is(project, name)
        and plan.changes_files
    )
