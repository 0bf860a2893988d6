"""Troubles of a sidecar that is in the tailnet: it serves nothing, or not all, or slowly. Each gives a finding, or None.

The numbers are those of the symptoms that others met (Tailscale's own threads are named where they are told).
"""

from __future__ import annotations

import posixpath
import re

from qmdctl.checks.finding import Finding
from qmdctl.checks.tailnet_evidence import Evidence
from qmdctl.checks.tailnet_login import told
from qmdctl.checks.tailnet_settings import image_version
from qmdctl.errors import ConfigurationError
from qmdctl.startup.sidecar_phases import HTTPS_OFF
from qmdctl.tailnet import UDP_PORT_KEYS, funnel, serve_config

SERVE_FOLDER = serve_config.MOUNT
IDLE_SECONDS = 90  # for which Tailscale's proxy keeps an idle connection (ipn/ipnlocal/serve.go)
ORDERS_AT_ONCE, ADVERTISES = (1, 100), (1, 96)
STOP_SECONDS = 40  # containerboot waits 20 s after it has withdrawn a Service


def nothing_served(evidence: Evidence) -> Finding | None:
    """1. The file is mounted, and nothing is in force (tailscale-dev/docker-guide-code-examples#17, tailscale/tailscale#19693)."""
    sidecar = evidence.sidecar
    if not sidecar.running or not serve_config.same(sidecar.serve, {}):
        return None
    if not sidecar.cert_domains:
        what, _, fix = HTTPS_OFF.format(console=sidecar.console("dns")).partition("; fix: ")
        return told(evidence, "failure", what, "Docker calls it healthy all the same", fix)
    try:
        serve_config.read(serve_config.on_disk(evidence.settings.project.folder, sidecar.serve_path))
    except ConfigurationError as error:
        return told(evidence, "failure", error.message, "so nothing is served", error.fix)
    return None  # stale_config has it


def other_network(evidence: Evidence) -> Finding | None:
    """2. The service lives in the sidecar's network, and loses it when that restarts (tailscale/tailscale#11821); or has none in common."""
    own = evidence.inspect(evidence.service, "NetworkSettings", "Networks")
    for backend in evidence.backends:
        mode = str(evidence.inspect(backend.service, "HostConfig", "NetworkMode") or "")
        if mode.startswith("container:"):
            what = f"{backend.service} lives in the network of another container (network_mode: service:)"
            why = "when that one restarts it is left without a network, and its own healthcheck stays green"
            fix = f"use the networks of compose.yaml; for now: docker compose up -d --force-recreate {backend.service}"
            return told(evidence, "failure", what, why, fix)
        networks = evidence.inspect(backend.service, "NetworkSettings", "Networks")
        if not isinstance(own, dict) or not isinstance(networks, dict) or not (evidence.container.running and backend.running):
            continue
        common = sorted(own.keys() & networks.keys())
        if not common:
            fix = "use the networks of compose.yaml, then qmdctl up"
            return told(evidence, "failure", f"it has no network in common with {backend.service}", "so it cannot lead there", fix)
        if len(common) > 1:
            why = "it may come from an address that is not believed, and who calls would then not be known"
            fix = "use the networks of compose.yaml, then qmdctl up"
            return told(evidence, "warning", f"it has several networks in common with {backend.service}: {', '.join(common)}", why, fix)
    return None


def unreached(evidence: Evidence) -> Finding | None:
    """3. 502: the service behind is not reached (tailscale-dev/docker-guide-code-examples#26, tailscale/tailscale#13931, #18600)."""
    if evidence.unreached:
        return told(evidence, "failure", evidence.unreached.why, "clients get 502", evidence.unreached.fix)
    since = max((one.started_at for one in evidence.backends if one.started_at), default=None)
    seen = evidence.lines(r"http: proxy error: (dial tcp.*(?:refused|no such host|i/o timeout|unreachable).*)", since)
    if not seen:
        return None
    names = ", ".join(one.service for one in evidence.backends) or "the service behind"
    why = f"the last time: {seen[0][1][:150]}; a service that loads a model does not listen yet"
    return told(evidence, "warning", f"it did not reach {names} for a while, and does now", why, f"qmdctl logs {names.split(',')[0]}")


def no_certificate(evidence: Evidence) -> Finding | None:
    """7. (tailscale/tailscale#10395, #10220, almeidapaulopt/tsdproxy#427)."""
    sidecar = evidence.sidecar
    if not sidecar.running or not sidecar.cert_domains or (sidecar.certificate and sidecar.certificate.days_left > 0):
        return None
    what = "it has no certificate yet" if sidecar.certificate is None else "its certificate is over"
    limit = evidence.symptom("certificate_rate_limit")
    if limit:
        return told(evidence, "failure", what, limit.cause, limit.fix)
    said = evidence.lines(r"(set-dns response: .*|getCertPEM: .*|cert refresh.*(?:failed|error).*)")
    if said:
        fix = f"it is tried again every hour, qmdctl restart {evidence.service} tries it now; keep the volume"
        return told(evidence, "failure", what, said[0][1][:200], fix)
    version = image_version(evidence.container.image)
    if version and version < ORDERS_AT_ONCE:
        why = f"Tailscale {version[0]}.{version[1]} orders it at the first request, which then takes up to a minute"
        fix = (
            f"take TAILSCALE_IMAGE out of .env; for now: docker exec {evidence.container.name} tailscale cert --cert-file=- {sidecar.name}"
        )
        return told(evidence, "warning", what, why, fix)
    why = next((text for text in sidecar.health if "certificate" in text.lower()), "it takes up to some minutes; a request meanwhile hangs")
    return told(evidence, "warning", what, why, f"wait, and keep the volume; its log: qmdctl logs {evidence.service}")


def service_offline(evidence: Evidence) -> Finding | None:
    """9. A Tailscale Service that no client is sent to (tailscale/tailscale#18255, #17769)."""
    sidecar, wanted = evidence.sidecar, list(evidence.sidecar.serve.get("Services") or {})
    if not sidecar.running or not wanted:
        return None
    first = wanted[0]
    if not sidecar.tags:
        fix = "set TS_TAGS in .env, then qmdctl down --forget, then qmdctl up"
        return told(evidence, "failure", f"{first} is not offered", "only a node with a tag may host a Service", fix)
    if first not in sidecar.advertised:
        version = image_version(evidence.container.image)
        old = "this version does not advertise it by itself; " if version and version < ADVERTISES else ""
        why = f"{old}the config alone does not do it, and a restart may lose it"
        fix = f"docker exec {evidence.container.name} tailscale serve advertise {first}"
        return told(evidence, "failure", f"{first} is not advertised", why, fix)
    if "service-host" not in sidecar.capabilities:
        why = "it has to exist with port tcp:443, and this host to be approved for it"
        fix = f"look at Services in {sidecar.console('services')}; autoApprovers of tailscale/policy.hujson approves by itself"
        return told(evidence, "failure", f"{first} is advertised, and the tailnet has not approved this host", why, fix)
    seconds = evidence.inspect(evidence.service, "Config", "StopTimeout")
    if evidence.inspected and (seconds or 10) < STOP_SECONDS:
        why = "a stop withdraws the Service and waits 20 s; Docker kills it before"
        return told(
            evidence,
            "warning",
            f"it is killed {seconds or 10} s after a stop",
            why,
            f"stop_grace_period: {STOP_SECONDS}s, as in compose.yaml",
        )
    return None


def relayed(evidence: Evidence) -> Finding | None:
    """10. Slow: clients come through a relay (tailscale-dev/docker-mod#3, hassio-addons/app-tailscale#475)."""
    if not evidence.sidecar.running:
        return None
    key = UDP_PORT_KEYS[evidence.service]
    listens = re.search(r"--port=(\d+)", evidence.environment("TS_TAILSCALED_EXTRA_ARGS"))
    port = listens[1] if listens else ""
    if evidence.container.ports.get(f"{port}/udp") != (int(port) if port else 0):
        what = f"its UDP port {port or '(none is fixed)'} is not published under the same number"
        return told(
            evidence, "warning", what, "laptops may have to go through a relay, which is slow", f"publish it as compose.yaml does ({key})"
        )
    over = [peer for peer in evidence.peers if peer.get("Active") and not peer.get("CurAddr") and peer.get("Relay")]
    if not over:
        return None
    names = ", ".join(f"{peer.get('HostName')} (relay {peer.get('Relay')})" for peer in over[:5])
    fix = f"let {port}/udp in: sudo ufw allow {port}/udp, or the machine's own firewall; behind a router forward it"
    return told(evidence, "warning", f"it speaks through a relay with {names}", "that is slow; the connection is private all the same", fix)


def stale_config(evidence: Evidence) -> Finding | None:
    """11. Edits to serve.json do not take effect."""
    sidecar, folder = evidence.sidecar, evidence.settings.project.folder
    for mount in evidence.inspect(evidence.service, "Mounts") or []:
        place = str(mount.get("Destination", ""))
        if place.startswith(f"{SERVE_FOLDER}/"):
            why = "a file mounted alone keeps its old content when it is replaced, as editors do"
            return told(evidence, "failure", f"{place} is mounted alone", why, "mount the folder ./tailscale at /serve, then qmdctl up")
    if not sidecar.running or not sidecar.cert_domains:
        return None
    configured = serve_config.configured_path(evidence.settings, folder, evidence.service)
    if posixpath.normpath(configured) != posixpath.normpath(sidecar.serve_path or "."):
        what = f"it works by {sidecar.serve_path or 'no file'}, and by .env it is to be {configured}"
        return told(evidence, "failure", what, "the settings have changed since it was made", "qmdctl up")
    try:
        wanted = serve_config.read(serve_config.on_disk(folder, configured))
    except ConfigurationError:
        return None  # tailnet_serve says so
    if serve_config.same(sidecar.serve, serve_config.expected(wanted, sidecar.cert_domain)):
        return None
    why = "it was changed by hand, or HTTPS was turned on after the start"
    return told(evidence, "failure", "the serve config in force is not the one on disk", why, f"qmdctl restart {evidence.service}")


def wrong_name(evidence: Evidence) -> Finding | None:
    """13. TLS with the short name or the address: only the full name has a certificate."""
    seen = evidence.lines(
        r"TLS handshake error from (?:\[?([0-9a-fA-F:.]+)\]?:\d+): (?:no webserver configured for name/port|no SNI ServerName)"
    )
    if not seen or not evidence.sidecar.running or serve_config.same(evidence.sidecar.serve, {}):
        return None
    what = f"somebody (last {seen[0][1]}) asks by another name than {evidence.sidecar.name}"
    why = "the short name and the address have no certificate, so TLS fails"
    return told(evidence, "warning", what, why, f"use {evidence.sidecar.url} in every client")


def old_clients(evidence: Evidence) -> Finding | None:
    """14. Only a laptop sees it (tailscale/tailscale#17687, #18326)."""
    if not evidence.sidecar.running or not evidence.sidecar.serve.get("Services"):
        return None
    if not any(str(peer.get("OS", "")).lower() == "linux" for peer in evidence.peers):
        return None
    what = "not seen from here: a Linux client older than 1.94 reaches a Service only after tailscale set --accept-routes"
    return told(evidence, "skipped", what, "", "")


def keep_alive(evidence: Evidence) -> Finding | None:
    """15. A POST gets 502 now and then, after a pause (llm-d/llm-d#1564)."""
    for backend in evidence.backends:
        seconds = backend.environment.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "5") if backend.service == "vllm" else ""
        if seconds.isdecimal() and int(seconds) <= IDLE_SECONDS:
            what = f"vllm closes an idle connection after {seconds} s"
            why = f"Tailscale keeps it for {IDLE_SECONDS} s, and a request that meets the end gets 502"
            return told(evidence, "failure", what, why, "VLLM_HTTP_TIMEOUT_KEEP_ALIVE: 120, as in compose.yaml, then qmdctl up")
    since = max((one.started_at for one in evidence.backends if one.started_at), default=None)
    seen = evidence.lines(r"http: proxy error: (EOF|unexpected EOF|.*connection reset by peer|.*server closed idle connection)", since)
    if not seen:
        return None
    why = "a service that ends, or one that closes idle connections before Tailscale does (90 s)"
    fix = f"qmdctl logs {evidence.backends[0].service}" if evidence.backends else "qmdctl status"
    return told(evidence, "warning", f"requests broke off: {seen[0][1][:100]}", why, fix)


def in_a_funnel(evidence: Evidence) -> Finding | None:
    """Not of the fifteen: what would show the name to the internet."""
    sidecar = evidence.sidecar
    found = funnel.in_force(sidecar, evidence.container.name) if sidecar.running else []
    if found:
        return told(evidence, "failure", found[0][0], "Funnel shows the name to the whole internet", found[0][1])
    may = funnel.permitted(sidecar) if sidecar.running else []
    return told(evidence, "warning", may[0][0], "it is off, and who logs in here could turn it on", may[0][1]) if may else None


TRAFFIC_TROUBLES = (
    nothing_served,
    other_network,
    unreached,
    no_certificate,
    service_offline,
    relayed,
    stale_config,
    wrong_name,
    old_clients,
    keep_alive,
    in_a_funnel,
)
