"""Where text generation leads: to a server that is there."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding
from qmdctl.checks.tailnet_services import locked
from qmdctl.laptop.names import is_loopback

OWN = "http://vllm:8000"


def check(context: Context) -> Iterator[Finding]:
    """Of the stack as configured: `qmdctl up embed` leaves the others as they are."""
    settings, url = context.settings, context.settings["GENERATION_URL"]
    services = settings.services
    problems = []
    if is_loopback(_host(url)):
        why = "in embed's container that address is the container itself, so that requests for text would be answered with an error"
        fix = (
            f"GENERATION_URL={OWN} in .env for vLLM here, with generation in COMPOSE_PROFILES; for a server beside the stack this "
            "machine's address in the network, on which that server has to listen"
        )
        problems.append(Finding("generation", "warning", f"GENERATION_URL={url} leads nowhere", why, fix))
    if _host(url) == "vllm" and "vllm" not in services:
        why = "requests for text would be answered with an error"
        fix = "empty GENERATION_URL in .env, or set it to a server elsewhere; for vLLM here add generation to COMPOSE_PROFILES"
        problems.append(Finding("generation", "warning", f"GENERATION_URL={url}, and vllm is not among the services", why, fix))
    if "ts-vllm" in services:
        problems += _name(settings["VLLM_SERVE"], url, services, locked(context))
    elif "vllm" in services and not url:
        why = "a client with one address, that of the embed service, gets no text; one that asks vLLM itself does"
        problems.append(
            Finding("generation", "warning", "vLLM runs, and GENERATION_URL is empty", why, f"set GENERATION_URL={OWN} in .env")
        )
    yield from problems
    if not problems:
        leads = f"embed passes text generation on to {url}" if url else "embed passes no text generation on"
        yield Finding("generation", "ok", leads)


def _name(serve: str, url: str, services: list[str], asks: bool) -> Iterator[Finding]:
    """What the name of vLLM leads to on the tailnet."""
    through = asks or serve == "vllm-through-embed"
    if through and not url:
        what = "the tailnet's name of vLLM leads through embed, and GENERATION_URL is empty"
        why = "with keys or a capability it leads to the service that checks them" if asks else "VLLM_SERVE=vllm-through-embed"
        fix = f"set GENERATION_URL={OWN} in .env, or to the server that generates text"
        yield Finding("generation", "failure", what, why, fix, True)
    elif not through and serve == "vllm" and "vllm" not in services:
        what = "VLLM_SERVE=vllm, and vllm is not among the services"
        fix = (
            "set VLLM_SERVE=vllm-through-embed, and GENERATION_URL to the server that generates text; or add generation to COMPOSE_PROFILES"
        )
        yield Finding("generation", "failure", what, "its name on the tailnet would lead to nobody", fix, True)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
