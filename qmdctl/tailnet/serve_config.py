"""The serve configs in tailscale/: which one a sidecar is given, whether it is the one in force, and that Funnel is nowhere in it."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qmdctl.compose_files import interpolate, load
from qmdctl.errors import ConfigurationError
from qmdctl.project import COMPOSE_FILE

FOLDER = "tailscale"
MOUNT = "/serve"
DOMAIN = "${TS_CERT_DOMAIN}"


def configured_path(settings: Mapping[str, str], folder: Path, sidecar: str) -> str:
    """TS_SERVE_CONFIG as Compose gives it to the sidecar by these settings."""
    environment = load(folder / COMPOSE_FILE)["services"][sidecar]["environment"]
    return interpolate(str(environment["TS_SERVE_CONFIG"]), lambda key: settings.get(key, ""))


def on_disk(folder: Path, serve_path: str) -> Path:
    """The project's file that the sidecar sees as `serve_path`."""
    return folder / FOLDER / posixpath.relpath(posixpath.normpath(serve_path), MOUNT)


def source(folder: Path, serve_path: str) -> Path:
    """The file that the owner writes: itself, or what a rendered one with a Service is made from."""
    path = on_disk(folder, serve_path)
    rendered = folder / FOLDER / "services"
    return folder / FOLDER / path.relative_to(rendered) if path.is_relative_to(rendered) else path


def read(path: Path) -> dict[str, Any]:
    """ConfigurationError for a file that is not there or that containerboot would stumble over."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", f"git checkout {FOLDER}; for services/: qmdctl up") from None
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is not JSON: {error}. The sidecar would end with it", f"correct it (no comments), or: git checkout {FOLDER}"
        ) from None
    known = {"TCP", "Web", "Services", "AllowFunnel", "Foreground"}
    if not isinstance(data, dict) or not data.keys() <= known or "$${" in text:
        raise ConfigurationError(
            f"{path} is not a serve config as the sidecar reads it (keys TCP, Web, Services; {DOMAIN} with one $)",
            f"write it as tailscale/embed/serve.json is, or: git checkout {FOLDER}",
        )
    return data


def expected(config: Mapping[str, Any], cert_domain: str) -> dict[str, Any]:
    """`config` as it is in force on a node with that certificate domain."""
    filled: dict[str, Any] = json.loads(json.dumps(config).replace(DOMAIN, cert_domain))
    return filled


def same(first: object, second: object) -> bool:
    """Whether two configs say the same: Tailscale leaves out what is empty or false."""
    return _without_empty(first) == _without_empty(second)


def targets(config: Mapping[str, Any]) -> list[str]:
    """Where its handlers lead, each once: "http://embed:8001"."""
    handlers = (handler for web in _webs(config) for handler in (web.get("Handlers") or {}).values())
    return list(dict.fromkeys(str(handler["Proxy"]) for handler in handlers if handler.get("Proxy")))


def capabilities(config: Mapping[str, Any]) -> set[str]:
    """The app capabilities that every handler passes on."""
    accepted = [set(handler.get("AcceptAppCaps") or ()) for web in _webs(config) for handler in (web.get("Handlers") or {}).values()]
    return set.intersection(*accepted) if accepted else set()


def funnel(config: object, path: str = "") -> list[str]:
    """Where AllowFunnel stands in it. The key alone, even with `false`, makes Tailscale publish the name."""
    found = []
    if isinstance(config, Mapping):
        for key, value in config.items():
            here = f"{path}.{key}".lstrip(".")
            found += [here] if str(key).lower() == "allowfunnel" and value != {} else funnel(value, here)
    return found


def _webs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from (config.get("Web") or {}).values()
    for service in (config.get("Services") or {}).values():
        yield from (service.get("Web") or {}).values()


def _without_empty(node: object) -> object:
    if isinstance(node, Mapping):
        kept = {key: _without_empty(value) for key, value in node.items()}
        return {key: value for key, value in kept.items() if value not in (None, {}, [], "", False)}
    return [_without_empty(one) for one in node] if isinstance(node, list) else node
