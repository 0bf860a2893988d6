"""Where the requests go: two addresses with their keys, proven to answer before anything is measured."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from qmdctl.bench.workload import Expansion
from qmdctl.errors import ConfigurationError, QmdError
from qmdctl.exchange import exchange
from qmdctl.laptop.clients import default_models
from qmdctl.laptop.dial import trust
from qmdctl.laptop.models import ROLES, served_models
from qmdctl.laptop.names import Names
from qmdctl.laptop.requests import LaptopProbe
from qmdctl.probes import Broken, Locked, Probe, json_or_none, json_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qmdctl.engine import Container
    from qmdctl.settings import Settings

PROOF_SECONDS = 30.0  # most for one request of the proof, where no idle models have to load first
SHORTEST_SECONDS = 0.1  # of a request when the time is over
ROUND_TRIPS = 5


@dataclass
class Target:
    """`generate_url` is empty where no text is generated. `settings` are the box's own; None on a laptop.

    `facts` is what embed's /health says of its engine, `round_trips` the seconds of a request that computes nothing, by service.
    """

    embed_url: str
    generate_url: str
    settings: Settings | None = None
    embed_key: str | None = None
    generate_key: str | None = None
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    expansion: Expansion | None = None
    models: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    round_trips: dict[str, float] = field(default_factory=dict)

    @property
    def laptop(self) -> bool:
        return self.settings is None

    def trust(self, url: str) -> Any:
        return trust() if url.startswith("https://") else False

    def payload(self) -> dict[str, Any]:
        return {
            "embed_url": self.embed_url,
            "generate_url": self.generate_url or None,
            "origins": self.origins,
            "models": self.models,
            "engine": self.facts,
            "round_trip_ms": {service: round(1000 * seconds, 2) for service, seconds in self.round_trips.items()},
        }


def box(settings: Settings, containers: Mapping[str, Container], key: str | None) -> Target:
    """The services of a project's containers, at the ports that they publish on this machine. QmdError where embed has none."""
    embed = _port(containers.get("embed"))
    if not embed:
        fix = "qmdctl up; or name the addresses of another box: --embed-url URL --generate-url URL"
        raise QmdError("There is no running container of embed with a port on this machine", fix)
    target = Target(f"http://127.0.0.1:{embed}", "", settings, key, origins={"embed": "its container here"})
    if "vllm" in settings.services:
        if port := _port(containers.get("vllm")):
            target.generate_url, target.origins["vllm"] = f"http://127.0.0.1:{port}", "its container here"
        else:
            target.notes.append("Searches have no expansion: vllm is configured, but no container of it runs (qmdctl status).")
    elif settings["GENERATION_URL"]:
        target.generate_url, target.origins["vllm"], target.generate_key = target.embed_url, "passed on by embed", key
    else:
        target.notes.append("Searches have no expansion: no text is generated here (COMPOSE_PROFILES, GENERATION_URL).")
    return target


def laptop(names: Names, key: str | None) -> Target:
    """Two addresses, from any machine. Clients that insist on a key send any where none is wanted, and so does this."""
    return Target(names.embed, names.generation, None, key or "any", key or "any", names.origins, list(names.notes))


def prove(target: Target, timeout_seconds: float, end: float) -> None:
    """One small request of each kind; fills in what is served and how queries are expanded. `end` (time.monotonic()) is that of the run.

    QmdError with the cause and its fix where embed does not answer rightly. Without generation the searches go without expansion, as a
    client's do.
    """

    def seconds() -> float:
        return min(timeout_seconds, PROOF_SECONDS, _left(end))

    with httpx.Client(trust_env=False, verify=target.trust(target.embed_url)) as client:
        probe = _probe(target, "embed", target.embed_url, target.embed_key, seconds(), client)
        for action in (probe.health, probe.embedding, lambda: probe.rerank(fitting_first=False)):
            probe.timeout_seconds = min(probe.timeout_seconds, _left(end))  # which an idle service's /health has made longer
            _or_end(action, target, end)
        target.facts = facts(client, target.embed_url, seconds())
        target.round_trips["embed"] = _round_trip(client, target.embed_url, seconds)
    if target.generate_url:
        with httpx.Client(trust_env=False, verify=target.trust(target.generate_url)) as client:
            _prove_generation(target, client, seconds)
    names = Names(target.embed_url, target.generate_url)
    found = served_models(names, default_models(), target.settings, target.embed_key)
    target.models = {role: getattr(found, role) for role in ROLES if found.origins[role] != "default"}
    if target.expansion is None:
        target.models.pop("generate", None)


def _left(end: float) -> float:
    return max(end - time.monotonic(), SHORTEST_SECONDS)


def _prove_generation(target: Target, client: httpx.Client, seconds: Callable[[], float]) -> None:
    service = "embed" if target.generate_url == target.embed_url else "vllm"
    probe = _probe(target, service, target.generate_url, target.generate_key, seconds(), client)
    try:
        probe.chat()
        target.expansion = "chat"
    except (Broken, Locked) as refused:
        probe.timeout_seconds = seconds()
        try:
            probe.completion()
        except (Broken, Locked):
            target.notes.append(f"Searches have no expansion: {refused}.")
            target.generate_url = ""
            return
        target.expansion = "completion"
        target.notes.append(f"Queries are expanded by /v1/completions, as older clients do: {refused}.")
    target.round_trips["vllm"] = _round_trip(client, target.generate_url, seconds)


def restarted(target: Target) -> str:
    """A sentence where the engine is another one than at the beginning; empty otherwise."""
    before = target.facts.get("restarts")
    with httpx.Client(trust_env=False, verify=target.trust(target.embed_url)) as client:
        after = facts(client, target.embed_url, 5.0).get("restarts")
    if not isinstance(before, int) or not isinstance(after, int) or after <= before:
        return ""
    return f"The engine was started again {after - before} times during the run: GET /health says what ended it (qmdctl logs embed)."


def facts(client: httpx.Client, url: str, seconds: float) -> dict[str, Any]:
    """Of embed's /health: device and engine; empty where it does not tell."""
    try:
        body = json_or_none(exchange(client, "GET", f"{url}/health", seconds))
    except httpx.HTTPError:
        return {}
    if not isinstance(body, dict):
        return {}
    told = {"device": body.get("device"), "version": body.get("version")}
    told |= {name: json_path(body, "engine", name) for name in ("dtype", "executor", "attention", "restarts")}
    return {name: value for name, value in told.items() if isinstance(value, str | int)}


def _round_trip(client: httpx.Client, url: str, seconds: Callable[[], float]) -> float:
    """The median of a few /health on a connection that is open already: the way there and back, and nothing computed."""
    taken = []
    for _ in range(ROUND_TRIPS + 1):
        started = time.perf_counter()
        try:
            exchange(client, "GET", f"{url}/health", seconds())
        except httpx.HTTPError:
            continue
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:] or taken or [0.0])


def _probe(target: Target, service: str, url: str, key: str | None, seconds: float, client: httpx.Client) -> Probe:
    return LaptopProbe(service, url, seconds, key, client) if target.laptop else Probe(service, url, seconds, key, client)


def _or_end(action: Callable[[], str], target: Target, end: float) -> None:
    try:
        action()
    except Broken as broken:
        first = f"Nothing was measured: {target.embed_url}: {broken.why}"
        if time.monotonic() >= end:
            raise QmdError(f"{first}, and with that the time was over", "more time: --seconds 600") from None
        raise QmdError(first, broken.fix or ("qmdctl test" if target.laptop else "qmdctl health")) from None
    except Locked as locked:
        fix = "from a laptop that has the capability: qmdctl bench --embed-url https://qmd-embed.TAILNET.ts.net"
        raise QmdError(f"Nothing was measured: {target.embed_url}: {locked}", fix) from None


def _port(container: Container | None) -> int:
    return next(iter(container.ports.values()), 0) if container is not None and container.running else 0


def parse_agents(text: str) -> tuple[int, ...]:
    """`1,5` → (1, 5). ConfigurationError, which names the option."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or len(numbers) > 4 or not all(1 <= number <= 64 for number in numbers):
        raise ConfigurationError(f"--agents: {text!r} is no list of one to four numbers from 1 to 64", "--agents 1,5")
    return numbers
