"""What each service serves at this moment, and from which commit: what it says itself, else what its container was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from qmdctl.catalog.roles import ROLES, Role, configured
from qmdctl.compose import Compose
from qmdctl.engine import Container
from qmdctl.errors import QmdError
from qmdctl.exchange import exchange
from qmdctl.inside import Inside, Running
from qmdctl.settings import Settings

SECONDS = 5.0
NOT_RUNNING, ELSEWHERE = "not running", "elsewhere"
VARIABLES = {"EMBED_MODEL": "EMBED_MODEL", "EMBED_REVISION": "EMBED_REVISION", "RERANK_MODEL": "RERANK_MODEL"}
VARIABLES |= {"RERANK_REVISION": "RERANK_REVISION", "VLLM_MODEL": "QMD_MODEL", "VLLM_REVISION": "QMD_REVISION"}


@dataclass(frozen=True)
class Served:
    """`state`: ok, loading, paused, idle, error, not running, elsewhere (GENERATION_URL). `revision`: a commit, None where nobody tells."""

    role: Role
    id: str
    state: str
    revision: str | None = None
    dtype: str | None = None
    fingerprint: str | None = None
    url: str = ""
    detail: str = ""

    @property
    def running(self) -> bool:
        return self.state not in (NOT_RUNNING, ELSEWHERE)

    def payload(self) -> dict[str, Any]:
        told = {"role": self.role.name, "model": self.id or None, "revision": self.revision, "state": self.state, "dtype": self.dtype}
        return {**told, "fingerprint": self.fingerprint, "url": self.url or None, "detail": self.detail or None}


def look_served(settings: Settings, containers: Mapping[str, Container], control: Inside | None) -> dict[str, Served]:
    """By role. `control`: asks the running embed service for its commits; None where it does not run, or is too old."""
    embed = containers.get("embed")
    told = control_status(control) if control is not None else {}
    health = _health(embed)
    found = {name: _embed_side(ROLES[name], settings, embed, health, told) for name in ("embed", "rerank")}
    return {**found, "generate": _generate(settings, containers.get("vllm"))}


def control_status(control: Inside) -> dict[str, Any]:
    """{"state", "models", "revisions", "fingerprint"}; empty where the service has no control socket."""
    try:
        lines = list(control.lines("control", "status"))
    except QmdError:
        return {}
    return next((line for line in reversed(lines) if "state" in line and "error" not in line), {})


def is_switched(compose: Compose, container: Container) -> bool:
    """Whether the embed service serves other models than its container's settings name."""
    return container.running and bool(control_status(Running(compose, echo=False)).get("switched"))


def given(container: Container, role: Role) -> tuple[str, str | None]:
    """(id, revision) that the container was made with."""
    environment = container.environment
    return environment.get(VARIABLES[role.key], ""), environment.get(VARIABLES[role.revision_key]) or None


def _embed_side(role: Role, settings: Settings, container: Container | None, health: Mapping[str, Any], told: Mapping[str, Any]) -> Served:
    if container is None or not container.running:
        return Served(role, configured(settings, role)[0], NOT_RUNNING)
    model, revision = given(container, role)
    named = (health.get("models") or {}).get(role.name) or (told.get("models") or {}).get(role.name)
    commit = (told.get("revisions") or {}).get(role.name)
    if commit is None and revision is not None and named in (None, model):
        commit = revision
    engine = health.get("engine") or {}
    return Served(
        role,
        str(named or model),
        str(health.get("status") or "loading"),
        str(commit) if commit else None,
        engine.get("dtype"),
        (told.get("fingerprint") or health.get("fingerprint")) if role.name == "embed" else None,
        f"http://127.0.0.1:{_port(container)}",
        str(health.get("error") or ""),
    )


def _generate(settings: Settings, container: Container | None) -> Served:
    role = ROLES["generate"]
    if "vllm" not in settings.services and container is None:
        url = settings["GENERATION_URL"]
        return Served(role, settings["GENERATION_MODEL"] if url else "", ELSEWHERE if url else NOT_RUNNING, url=url)
    if container is None or not container.running:
        return Served(role, settings[role.key], NOT_RUNNING)
    model, revision = given(container, role)
    url = f"http://127.0.0.1:{_port(container)}"
    listed = _get(f"{url}/v1/models").get("data")
    first = next((one for one in listed if isinstance(one, dict)), {}) if isinstance(listed, list) else {}
    place = PurePosixPath(str(first.get("root") or ""))  # vLLM is given the snapshot's folder
    commit = place.name if place.parent.name == "snapshots" else revision
    dtype = container.environment.get("QMD_DTYPE") or None
    return Served(role, model, "ok" if first else "loading", commit, dtype, url=url)


def _health(container: Container | None) -> dict[str, Any]:
    if container is None or not container.running:
        return {}
    return _get(f"http://127.0.0.1:{_port(container)}/health")


def _port(container: Container) -> int:
    return next(iter(container.ports.values()), 0)


def _get(url: str) -> dict[str, Any]:
    """The JSON object that is answered, whatever its status; empty where nothing fits."""
    import httpx

    try:
        with httpx.Client(trust_env=False) as client:
            data = exchange(client, "GET", url, SECONDS).json()
    except (httpx.HTTPError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
