"""Tailscale Services (TAILNET_SERVICE=1): the names svc:qmd-embed and svc:qmd-vllm, which several boxes share.

A Service's serve config names the tailnet's suffix, which is known once a node has logged in: so the sidecars start with the node's own
config, and `settle` puts the Service beside it and advertises it. Stopping a sidecar withdraws it: containerboot takes the
advertisement back on SIGTERM and waits 20 s while clients go to another box (kube/services of Tailscale 1.102.3).
"""

from __future__ import annotations

import copy
import json
import platform
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.tailnet import HOSTNAME_KEYS, SIDECARS, serve_config

if TYPE_CHECKING:
    from qmdctl.compose import Compose
    from qmdctl.engine import Engine
    from qmdctl.env_file import EnvFile
    from qmdctl.settings import Settings

NAMES = {"ts-embed": "qmd-embed", "ts-vllm": "qmd-vllm"}
FOLDERS = {"embed": "ts-embed", "vllm": "ts-vllm", "vllm-through-embed": "ts-vllm"}
KEY = "TAILNET_SERVICE"
IN_FORCE_SECONDS = 30.0
POLL_SECONDS = 0.5


def wanted(settings: Settings) -> bool:
    return bool(settings[KEY]) and any(name in SIDECARS for name in settings.services)


def name_nodes(file: EnvFile) -> list[str]:
    """Give the nodes names of their own in .env where they would have the Service's, which Tailscale refuses. The keys that were set."""
    host = re.sub(r"[^a-z0-9]+", "-", platform.node().split(".")[0].lower()).strip("-")[:40] or "1"
    named = []
    for sidecar, key in HOSTNAME_KEYS.items():
        if file.values.get(key, "") in ("", NAMES[sidecar]):
            file.set(key, f"{NAMES[sidecar]}-{host}")
            named.append(key)
    return named


def prepare(folder: Path) -> None:
    """The folders that TS_SERVE_CONFIG leads to: the nodes' own configs, and beside them the Service where its suffix is known by now."""
    for name, sidecar in FOLDERS.items():
        config = serve_config.read(folder / serve_config.FOLDER / name / "serve.json")
        path = folder / serve_config.FOLDER / "services" / name / "serve.json"
        suffix = _suffix(path, NAMES[sidecar])
        whole = render(config, NAMES[sidecar], suffix) if suffix else config
        if not path.exists() or serve_config.read(path) != whole:
            write(path, whole)


def _suffix(path: Path, service: str) -> str:
    """The tailnet's, in a config that was rendered before."""
    try:
        (host,) = serve_config.read(path)["Services"][f"svc:{service}"]["Web"]
    except (ConfigurationError, KeyError, ValueError):
        return ""
    return str(host).removeprefix(f"{service}.").rpartition(":")[0]


def render(config: dict[str, Any], service: str, suffix: str) -> dict[str, Any]:
    """A node's own `config` with the Service beside it, which leads where the node does. `service`: "qmd-embed"."""
    ((_, web),) = config["Web"].items()
    whole = copy.deepcopy(config)
    whole["Services"] = {f"svc:{service}": {"TCP": {"443": {"HTTPS": True}}, "Web": {f"{service}.{suffix}:443": copy.deepcopy(web)}}}
    return whole


def write(path: Path, config: dict[str, Any]) -> None:
    """At once, so that the sidecar, which watches the folder, never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    try:
        beside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}", f"ls -ld {path.parent} shows its owner") from None


def settle(engine: Engine, compose: Compose, settings: Settings, named: Collection[str]) -> list[str]:
    """Render the Service of each running sidecar among `named`, wait until it is in force, advertise it. What is advertised then."""
    from qmdctl.tailnet.sidecar import read_sidecar

    advertised = []
    for sidecar, container in engine.containers(settings.name).items():
        if sidecar not in SIDECARS or sidecar not in named or not container.running:
            continue
        node = read_sidecar(engine, container)
        service = f"svc:{NAMES[sidecar]}"
        if not node.running:
            raise QmdError(f"{sidecar} is not on the tailnet, so {service} cannot be advertised", "qmdctl health names what is wrong")
        if not node.tags:
            raise QmdError(
                f"{sidecar} has no tag, and Tailscale lets only tagged nodes be hosts of a Service",
                "qmdctl down --forget, then qmdctl up with TS_TAGS=tag:qmd-server and a key that may have it (docs/tailnet.md)",
            )
        path = serve_config.on_disk(settings.project.folder, node.serve_path)
        own = serve_config.read(serve_config.source(settings.project.folder, node.serve_path))
        whole = render(own, NAMES[sidecar], node.suffix)
        if serve_config.read(path) != whole:
            write(path, whole)
        _wait_in_force(engine, sidecar, settings, whole)
        if service not in node.advertised:
            compose.run("exec", "-T", sidecar, "tailscale", "serve", "advertise", service)
        advertised.append(service)
    return advertised


def _wait_in_force(engine: Engine, sidecar: str, settings: Settings, config: dict[str, Any]) -> None:
    from qmdctl.tailnet.sidecar import read_sidecar

    end = time.monotonic() + IN_FORCE_SECONDS
    while time.monotonic() < end:
        container = engine.containers(settings.name).get(sidecar)
        if container is not None and container.running:
            node = read_sidecar(engine, container)
            if serve_config.same(node.serve, serve_config.expected(config, node.cert_domain)):
                return
        time.sleep(POLL_SECONDS)
    raise QmdError(f"{sidecar} did not put its serve config in force within {IN_FORCE_SECONDS:g} s", f"qmdctl logs {sidecar}")
