"""The links of a sidecar, from its container to a verified request over the tailnet. Its own healthcheck tells no more than the second."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

from qmdctl.engine import Container, Engine
from qmdctl.errors import QmdError
from qmdctl.probes import Broken, Link, try_link
from qmdctl.settings import Settings
from qmdctl.startup.causes import cause_of
from qmdctl.startup.phases import phase_of
from qmdctl.startup.sidecar_phases import HTTPS_OFF, STOPPED, renamed_text
from qmdctl.tailnet import SIDECARS, funnel, serve_config, through
from qmdctl.tailnet.reach import reach
from qmdctl.tailnet.sidecar import Sidecar, read_sidecar

SOON_DAYS = 14  # of a login or a certificate that ends; tailscaled renews a certificate of 90 days when 30 are left
REQUEST_SECONDS = 10.0  # at most, for one way to the name
EXPIRED = "its login has expired"
LOG_IN_AGAIN = "put a new key into the file of TS_AUTHKEY_FILE, or let qmdctl up show a link; a node with a tag does not expire"
LAPTOP = "run `qmdctl test` on a laptop"


class NotTried(Exception):
    """It cannot be tried from here, which is no fault."""


@dataclass(frozen=True)
class Tailnet:
    """What the links are found from. `sidecars`: those that run."""

    engine: Engine
    settings: Settings
    containers: Mapping[str, Container]
    sidecars: Mapping[str, Sidecar]
    key: str | None = None
    timeout_seconds: float = 20.0

    @property
    def locked(self) -> bool:
        """Whether callers need a key or a capability, which vLLM itself does not check."""
        return bool(self.settings["API_KEYS_FILE"] or self.settings["REQUIRE_CAPABILITY"])


@dataclass
class _Chain:
    """Links in their order; one whose needs do not hold is not tried, the others stand side by side."""

    service: str
    links: list[Link] = field(default_factory=list)

    def add(self, name: str, action: Callable[[], str], *needs: str) -> None:
        if not all(link.ok for link in self.links if link.name in needs):
            self.links.append(Link(self.service, name))
            return
        try:
            self.links.append(try_link(self.service, name, _plain(action)))
        except NotTried as reason:
            self.links.append(Link(self.service, name, detail=str(reason)))


def _plain(action: Callable[[], str]) -> Callable[[], str]:
    """An engine that does not answer breaks a link, not the command."""

    def act() -> str:
        try:
            return action()
        except QmdError as error:
            raise Broken(error.message, error.fix) from None

    return act


def check_sidecars(
    engine: Engine, settings: Settings, containers: Mapping[str, Container], key: str | None, timeout_seconds: float
) -> list[Link]:
    """The links of each sidecar that is configured; none where the profile tailnet is off."""
    there = {name: containers[name] for name in SIDECARS if name in containers}
    sidecars = {name: read_sidecar(engine, container) for name, container in there.items() if container.running}
    tailnet = Tailnet(engine, settings, containers, sidecars, key, timeout_seconds)
    return [link for name in SIDECARS if name in settings.services for link in check_sidecar(tailnet, name)]


def check_sidecar(tailnet: Tailnet, service: str) -> list[Link]:
    chain, container, settings = _Chain(service), tailnet.containers.get(service), tailnet.settings
    chain.add("container", lambda: runs(tailnet, service))
    sidecar = tailnet.sidecars.get(service, Sidecar(service))
    chain.add("login", lambda: logged_in(sidecar, container.name if container else service), "container")
    chain.add("name", lambda: named(sidecar), "login")
    chain.add("tag", lambda: tagged(sidecar, settings["TS_TAGS"]), "login")
    chain.add("login's end", lambda: login_end(sidecar), "login")
    chain.add("HTTPS", lambda: https_on(sidecar), "login")
    chain.add("certificate", lambda: certified(sidecar), "HTTPS")
    chain.add("serve config", lambda: serve_in_force(sidecar, settings), "HTTPS")
    chain.add("leads to", lambda: leads(tailnet, sidecar), "serve config")
    if settings["TAILNET_SERVICE"]:
        chain.add("Service", lambda: service_names(sidecar, container.name if container else service), "serve config")
    chain.add("Funnel", lambda: no_funnel(tailnet, sidecar), "login")
    chain.add("backend", lambda: backend(tailnet, sidecar), "container", "leads to")
    chain.add("request", lambda: request(tailnet, sidecar), "certificate", "serve config", "leads to", "backend")
    return chain.links


def runs(tailnet: Tailnet, service: str) -> str:
    container = tailnet.containers.get(service)
    if container is None:
        raise Broken("there is no container", "qmdctl up")
    if container.running:
        return container.name
    again = container.state == "restarting"
    other = next((name for name, one in tailnet.sidecars.items() if name != service and one.running), "")
    facts = {**tailnet.settings, "other_sidecar": other}
    why = cause_of(container, phase_of(container), tailnet.engine.logs(container), facts, again)
    raise Broken(f"{container.name}: {why.sentence}", why.fix if why.fix else f"qmdctl start {service}")


def logged_in(sidecar: Sidecar, container_name: str) -> str:
    service = sidecar.service
    if not sidecar.state:
        raise Broken("tailscaled does not answer inside it", f"qmdctl restart {service}; its log: qmdctl logs {service}")
    if sidecar.state == "NeedsLogin":
        if sidecar.auth_url:
            mend = f"open {sidecar.auth_url} as the tailnet's owner; or put a key into the file of TS_AUTHKEY_FILE, then qmdctl up"
            raise Broken(EXPIRED if sidecar.expired else "it waits for somebody to log it in", mend)
        if sidecar.login_error:
            raise Broken(f"its login is refused: {sidecar.login_error[:200]}", f"qmdctl doctor says more; its log: qmdctl logs {service}")
        if not sidecar.expired:
            raise Broken("it is not logged in, and the login server has sent no link", f"qmdctl doctor; its log: qmdctl logs {service}")
    if sidecar.expired:
        raise Broken(EXPIRED, LOG_IN_AGAIN)
    if sidecar.state == "NeedsMachineAuth":
        raise Broken("the machine waits for approval by the tailnet's owner", f"approve it in {sidecar.console('machines')}")
    if sidecar.state == "Stopped":
        raise _broken(STOPPED.format(container=container_name))
    if not sidecar.running:
        why = f": {sidecar.login_error[:200]}" if sidecar.login_error else ""
        raise Broken(f"it is not connected yet (state {sidecar.state}){why}", f"wait a minute; its log: qmdctl logs {service}")
    if not sidecar.online:
        mend = f"look at this machine's way out to the internet; then qmdctl restart {service}"
        raise Broken("its connection to the login server is lost: changes of the tailnet do not reach it", mend)
    return ", ".join(sidecar.addresses)


def named(sidecar: Sidecar) -> str:
    if not sidecar.name:
        raise Broken("the tailnet gives it no name", f"turn on MagicDNS in {sidecar.console('dns')}")
    if sidecar.renamed:
        raise Broken(*renamed_text(sidecar))
    return sidecar.name


def tagged(sidecar: Sidecar, wanted: str) -> str:
    missing = [tag for tag in map(str.strip, wanted.split(",")) if tag and tag not in sidecar.tags]
    text = ", ".join(sidecar.tags) or "warning: no tag, so it belongs to the person who logged it in, and that login ends"
    return text + (f"; {', '.join(missing)} of TS_TAGS is not among them: they count at the login only" if missing else "")


def login_end(sidecar: Sidecar) -> str:
    if sidecar.expiry is None:
        return "it does not end"
    days = (sidecar.expiry - datetime.now(UTC)).total_seconds() / 86400
    if days <= 0:
        raise Broken(EXPIRED, LOG_IN_AGAIN)
    text = f"it ends on {sidecar.expiry:%Y-%m-%d}"
    soon = f"warning: {text}, in {days:.0f} days; turn its key expiry off in {sidecar.console('machines')}, or log in with a tag"
    return soon if days < SOON_DAYS else text


def https_on(sidecar: Sidecar) -> str:
    if not sidecar.cert_domains:
        raise _broken(HTTPS_OFF.format(console=sidecar.console("dns")))
    return f"certificates for {', '.join(sidecar.cert_domains)}"


def certified(sidecar: Sidecar) -> str:
    certificate, service = sidecar.certificate, sidecar.service
    if certificate is None:
        pending = next((text for text in sidecar.health if "certificate" in text.lower()), "")
        why = f"there is none yet: {pending}" if pending else "there is none"
        raise Broken(why, f"wait a minute, and keep the volume; qmdctl doctor and qmdctl logs {service} say why it does not come")
    if sidecar.name.lower() not in (name.lower() for name in certificate.names):
        raise Broken(f"it is for {', '.join(certificate.names)}, not for {sidecar.name}", f"qmdctl restart {service}")
    days, text = certificate.days_left, f"it ends on {certificate.not_after:%Y-%m-%d}"
    if days <= 0:
        raise Broken(
            f"it ended on {certificate.not_after:%Y-%m-%d}: it was not renewed", f"qmdctl restart {service}; qmdctl logs {service}"
        )
    if days < SOON_DAYS:
        return f"warning: {text}, in {days:.0f} days; it should have been renewed by now: qmdctl logs {service} says why not"
    return text


def serve_in_force(sidecar: Sidecar, settings: Settings) -> str:
    folder, service = settings.project.folder, sidecar.service
    configured = posixpath.normpath(serve_config.configured_path(settings, folder, service))
    if posixpath.normpath(sidecar.serve_path) != configured:
        is_now = sidecar.serve_path and posixpath.normpath(sidecar.serve_path)
        raise Broken(f"it works by {is_now or 'no file'}; by the settings it is to be {configured}", "qmdctl up")
    path = serve_config.on_disk(folder, configured)
    shown = path.relative_to(folder) if path.is_relative_to(folder) else path
    if not serve_config.same(sidecar.serve, serve_config.expected(serve_config.read(path), sidecar.cert_domain)):
        none = serve_config.same(sidecar.serve, {})
        raise Broken(f"{shown} is not in force, {'nothing' if none else 'something else'} is", f"qmdctl restart {service}")
    return str(shown)


def leads(tailnet: Tailnet, sidecar: Sidecar) -> str:
    """Beside a name that asks for a key no other may lead around it."""
    targets = serve_config.targets(sidecar.serve)
    if not targets:
        raise Broken("the serve config leads nowhere", "git checkout tailscale, then qmdctl up")
    open_ones = [target for target in targets if urlsplit(target).hostname != "embed"]
    if tailnet.locked and open_ones:
        why = f"it leads to {open_ones[0]}, which asks for no key and no capability, though {_demand(tailnet.settings)} is set"
        raise Broken(why, "qmdctl up; with a serve config of your own: lead to http://embed:8001")
    wanted, passed = tailnet.settings["REQUIRE_CAPABILITY"], serve_config.capabilities(sidecar.serve)
    if wanted and wanted not in passed:
        why = f"it passes on {', '.join(sorted(passed)) or 'no capability'}, and REQUIRE_CAPABILITY is {wanted}: everybody is refused"
        raise Broken(why, f"write {wanted} into AcceptAppCaps of the serve config, then qmdctl restart {sidecar.service}")
    return ", ".join(targets)


def service_names(sidecar: Sidecar, container_name: str) -> str:
    """The Tailscale Services: in the serve config, and advertised."""
    names = list(sidecar.serve.get("Services") or {})
    if not names:
        raise Broken("TAILNET_SERVICE is set, and the serve config in force has no Service", "qmdctl up")
    if not sidecar.tags:
        raise Broken("only a node with a tag may host a Service", "set TS_TAGS in .env, then qmdctl down --forget, then qmdctl up")
    silent = [name for name in names if name not in sidecar.advertised]
    if silent:
        mend = f"docker exec {container_name} tailscale serve advertise {silent[0]}"
        raise Broken(f"{', '.join(silent)} is not advertised, so no client is sent here", mend)
    text = ", ".join(f"{name} (https://{name.removeprefix('svc:')}.{sidecar.suffix})" for name in names)
    approval = "" if "service-host" in sidecar.capabilities else "; warning: the tailnet has not approved this host"
    return f"{text} advertised{approval}"


def no_funnel(tailnet: Tailnet, sidecar: Sidecar) -> str:
    folder, container = tailnet.settings.project.folder, tailnet.containers[sidecar.service]
    path = serve_config.on_disk(folder, sidecar.serve_path) if sidecar.serve_path else folder
    found = [
        *funnel.in_file(path),
        *funnel.in_force(sidecar, container.name),
        *funnel.in_policy_file(folder),
    ]
    if any(urlsplit(target).hostname == "embed" for target in serve_config.targets(sidecar.serve)):
        embed = tailnet.containers.get("embed")
        port = next(iter(embed.ports.values()), 0) if embed and embed.running else 0
        status = funnel.answered(port, tailnet.timeout_seconds) if port else None
        refusal = "embed refuses such requests" if status == 403 else "embed could not be asked whether it refuses such requests"
        if status not in (403, None):
            found.append((f"embed answers {status} to a request that came through Funnel", "qmdctl up, which builds its image anew"))
    else:
        refusal = "vLLM would not refuse such requests"
    if found:
        raise Broken("; ".join(what for what, _ in found), found[0][1])
    may = funnel.permitted(sidecar)
    permitted = f"warning: {may[0][0]}, which would let it be turned on ({may[0][1]})" if may else "not permitted to this node"
    return f"in no serve config, {permitted}, not in {funnel.POLICY} (the tailnet's policy cannot be read from here); {refusal}"


def backend(tailnet: Tailnet, sidecar: Sidecar) -> str:
    container = tailnet.containers[sidecar.service]
    return "; ".join(reach(tailnet.engine, container, target) for target in serve_config.targets(sidecar.serve))


def request(tailnet: Tailnet, sidecar: Sidecar) -> str:
    """GET /health by the full name from another node. NotTried where none gets through: a policy may well forbid sidecars that."""
    seconds, reasons = min(tailnet.timeout_seconds, REQUEST_SECONDS), []
    headers = {"Authorization": f"Bearer {tailnet.key}"} if tailnet.key else {}
    for where, way in ways(tailnet, sidecar, seconds):
        try:
            with way as stream:
                return judge(sidecar, through.get(stream, sidecar.name, "/health", seconds, headers), where)
        except (through.Unreached, QmdError) as error:
            reasons.append(f"{where}: {error}")
        except through.Refused as refused:
            raise Broken(*_refusal(sidecar, refused, where)) from None
    if not reasons:
        raise NotTried(f"not tried from here: no other node of the tailnet is on this machine; {LAPTOP}")
    raise NotTried(f"not tried from here: {'; '.join(reasons)} (the policy need not let this node reach the other); {LAPTOP}")


def ways(tailnet: Tailnet, sidecar: Sidecar, seconds: float) -> Iterator[tuple[str, AbstractContextManager[through.Stream]]]:
    """From where the name can be tried: this machine where it is on the tailnet itself, and the other sidecars."""
    if sidecar.addresses and through.host_knows(sidecar.name):
        yield "this machine", through.from_here(sidecar.addresses[0], seconds)
    for name, other in tailnet.sidecars.items():
        if name != sidecar.service and other.running:
            yield name, through.from_container(tailnet.containers[name].id, sidecar.name, seconds)


def judge(sidecar: Sidecar, answer: through.Answer, where: str) -> str:
    text = f"{sidecar.url}/health from {where}: {answer.status}, {answer.protocol}"
    if answer.status in (401, 403):
        return f"{text}; it asks for more than this node has, as it is to"
    if answer.status == 502:
        raise Broken(f"{text}: Tailscale does not reach what the name leads to", f"qmdctl logs {sidecar.service}; qmdctl status")
    if answer.status != 200:
        raise Broken(text, f"qmdctl status; qmdctl logs {SIDECARS[sidecar.service]}")
    return text


def _refusal(sidecar: Sidecar, refused: through.Refused, where: str) -> tuple[str, str]:
    if refused.untrusted:
        why = f"{sidecar.url} from {where}: the certificate is not believed here: {refused.why}"
        return (
            why,
            "where its authority is one of your own: SSL_CERT_FILE=FILE qmdctl health; otherwise look at this machine's ca-certificates",
        )
    return f"{sidecar.url} from {where}: {refused.why}", f"qmdctl doctor; qmdctl logs {sidecar.service}"


def _broken(sentence: str) -> Broken:
    """Of a sentence with its fix behind it."""
    why, _, mend = sentence.partition("; fix: ")
    return Broken(why, mend)


def _demand(settings: Settings) -> str:
    return "REQUIRE_CAPABILITY" if settings["REQUIRE_CAPABILITY"] else "API_KEYS_FILE"
