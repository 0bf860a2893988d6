"""The serve configs on disk: Tailscale reads them, they lead where the keys are checked, and none of them opens a Funnel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding
from qmdctl.checks.tailnet_services import locked, started
from qmdctl.errors import ConfigurationError
from qmdctl.tailnet import funnel, serve_config


def check(context: Context) -> Iterator[Finding]:
    folder, used = context.settings.project.folder, []
    problems: list[Finding] = []
    for service in started(context):
        path = serve_config.source(folder, serve_config.configured_path(context.settings, folder, service))
        used.append(path)
        problems += _file(context, service, path)
    problems += [_failure(what, "Funnel shows the name to the whole internet", fix) for what, fix in funnel.in_policy_file(folder)]
    rendered = folder / serve_config.FOLDER / "services"
    for path in sorted((folder / serve_config.FOLDER).rglob("serve.json")):
        if path not in used and not path.is_relative_to(rendered):
            problems += [Finding("tailnet_serve", "warning", what, "it is not used now", fix) for what, fix in funnel.in_file(path)]
    yield from problems
    if not problems:
        yield Finding("tailnet_serve", "ok", ", ".join(shown(folder, path) for path in used))


def shown(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _failure(what: str, why: str, fix: str) -> Finding:
    return Finding("tailnet_serve", "failure", what, why, fix, True)


def _file(context: Context, service: str, path: Path) -> Iterator[Finding]:
    folder = context.settings.project.folder
    problems = [_failure(what, "Funnel shows the name to the whole internet", fix) for what, fix in funnel.in_file(path)]
    try:
        config = serve_config.read(path) if not problems else json.loads(path.read_text(encoding="utf-8"))
    except ConfigurationError as error:
        why = _dialect(path) or f"{service} would serve nothing"
        yield _failure(error.message, why, error.fix)
        return
    yield from problems
    yield from _content(context, service, shown(folder, path), config)


def _dialect(path: Path) -> str:
    """What makes a file that is JSON no serve config."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except (OSError, ValueError):
        return ""
    if "$${" in text:
        return "the second $ is for compose files; here Tailscale would not see its variable"
    if isinstance(data, dict) and ("version" in data or "services" in data):
        return "this is the file that `tailscale serve set-config` takes; the container takes another form"
    return ""


def _content(context: Context, service: str, name: str, config: Mapping[str, Any]) -> Iterator[Finding]:
    targets, capability = serve_config.targets(config), context.settings["REQUIRE_CAPABILITY"]
    again = "git checkout tailscale, or correct it"
    if not targets:
        yield _failure(f"{name} leads nowhere", "it has no handler with a Proxy", again)
    ports = config.get("TCP") or {}
    if not config.get("Services") and not (isinstance(ports.get("443"), Mapping) and ports["443"].get("HTTPS")):
        yield _failure(f"{name} has no HTTPS at port 443", "clients ask there", again)
    open_ones = [target for target in targets if urlsplit(target).hostname != "embed"]
    if locked(context) and open_ones:
        key = "REQUIRE_CAPABILITY" if capability else "API_KEYS_FILE"
        why = f"{key} is set, and nobody asks for it there: {service} would be an open door beside a locked one"
        yield _failure(f"{name} leads to {open_ones[0]}", why, "lead to http://embed:8001, which checks it")
    if capability and targets and capability not in serve_config.capabilities(config):
        passed = ", ".join(sorted(serve_config.capabilities(config))) or "none"
        why = f"it passes on {passed}, so everybody would be refused"
        yield _failure(
            f"REQUIRE_CAPABILITY={capability} is not in AcceptAppCaps of {name}", why, f"write it there, or set REQUIRE_CAPABILITY={passed}"
        )
    hosts = [host for host in config.get("Web") or {} if serve_config.DOMAIN not in host]
    if hosts:
        why = "where HTTPS is turned on after the start, it is put in force at the next restart only; and a renamed node has another name"
        fix = f"write {serve_config.DOMAIN}:443 in its place"
        yield Finding("tailnet_serve", "warning", f"{name} has the name {hosts[0]} in it", why, fix)
