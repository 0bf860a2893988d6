"""From a name to a verified connection: its addresses, its port, its certificate."""

from __future__ import annotations

import concurrent.futures
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from qmdctl.probes import Broken

RESOLVE_SECONDS = 5.0
CONNECT_SECONDS = 5.0
HANDSHAKE_SECONDS = 15.0  # a certificate that is only now being ordered takes longer; then the message says so
CLOSED_SECONDS = 2.0
SOON_DAYS = 14  # tailscaled renews a certificate a month before its end
NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for
TAILNET = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))
WHERE = "on the GPU box: "


class Silent(Broken):
    """A port that neither took nor refused the connection."""


class Untried(Exception):
    """Something that could not be asked, which says nothing of the other side."""


def lookup(name: str, seconds: float = RESOLVE_SECONDS) -> list[str]:
    """A name's addresses by this machine's resolver, IPv4 first; none where it has none. Broken when nothing answers in time."""
    answers: Queue[list[str]] = Queue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found = []
        answers.put(list(dict.fromkeys(str(entry[4][0]) for entry in sorted(found, key=lambda entry: entry[0] != socket.AF_INET))))

    # getaddrinfo has no time limit of its own; a daemon thread does not hold the program's end up.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except Empty:
        raise Broken(
            f"the resolver of this machine did not answer in {seconds:g} s", "tailscale dns status; and this machine's DNS"
        ) from None


def in_tailnet(address: str) -> bool:
    """Whether Tailscale gives out such addresses."""
    ip = ipaddress.ip_address(address.split("%")[0])
    return any(ip in network for network in TAILNET if network.version == ip.version)


def connect(host: str, port: int, fix: str, seconds: float = CONNECT_SECONDS) -> str:
    """Open and close a TCP connection. The address that answered; Broken says which way it failed."""
    try:
        with socket.create_connection((host, port), seconds) as connection:
            return f"{connection.getpeername()[0]} port {port}"
    except TimeoutError:
        raise Silent(f"port {port} did not answer in {seconds:g} s: nobody is there, or a firewall is in between", fix) from None
    except ConnectionRefusedError:
        raise Broken(f"port {port} is closed: nothing is served there", fix) from None
    except OSError as error:
        raise Broken(f"port {port}: {error.strerror or error}", fix) from None


def open_ports(addresses: Iterable[str], ports: Iterable[int], seconds: float = CLOSED_SECONDS) -> list[str]:
    """Those `address:port` that accept a connection; all are tried at once.

    Untried where none does and one could not be asked: no route, no socket left.
    """
    failures: list[str] = []

    def accepts(target: tuple[str, int]) -> bool:
        try:
            socket.create_connection(target, seconds).close()
        except (ConnectionRefusedError, TimeoutError):
            return False
        except OSError as error:
            failures.append(f"{target[0]}: {error.strerror or error}")
            return False
        return True

    targets = [(address, port) for address in addresses for port in ports]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(targets))) as pool:
        found = [f"{address}:{port}" for (address, port), is_open in zip(targets, pool.map(accepts, targets), strict=True) if is_open]
    if failures and not found:
        raise Untried("; ".join(sorted(set(failures))))
    return found


def trust(environment: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """What this machine trusts: its own store and SSL_CERT_FILE, as OpenSSL has it.

    Where neither variable is set certifi's list is added: some builds of Python for macOS come with no store at all. A company's own
    authority counts where it is in the system's store (on macOS in SSL_CERT_FILE, for OpenSSL does not read the keychain).
    """
    context = ssl.create_default_context()
    # Python 3.13 refuses authorities that lack an extension; no QMD client does, so the proof must not either.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not environment.get("SSL_CERT_FILE") and not environment.get("SSL_CERT_DIR"):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def certificate(host: str, port: int, context: ssl.SSLContext, full_name: str = "", seconds: float = HANDSHAKE_SECONDS) -> tuple[str, str]:
    """Verify the certificate for `host`: (what it is, what is to be done about it soon). Broken when it is not valid for that name.

    `full_name` is the name to use instead where `host` is a short name or an address and the full one is known.
    """
    try:
        facts = _handshake(host, port, context, host, seconds)
    except ssl.SSLCertVerificationError as error:
        raise _invalid(host, port, error, full_name, seconds) from None
    except TimeoutError:
        raise Broken(
            f"no TLS answer in {seconds:g} s: the certificate may be on order, which takes up to a minute",
            f"try again in a minute; {WHERE}qmdctl health",
        ) from None
    except ssl.SSLError as error:
        raise _no_tls(host, error, full_name) from None
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise _partial(host, full_name) or Broken(
            f"the TLS handshake was broken off ({reason}): the node has no certificate for {host} yet, or serves another name",
            f"{WHERE}qmdctl health",
        ) from None
    days = int((ssl.cert_time_to_seconds(facts["notAfter"]) - time.time()) // 86400)
    names = ", ".join(_names(facts))
    soon = f"it should have been renewed by now; {WHERE}qmdctl health" if days < SOON_DAYS else ""
    return f"valid for {names}, issued by {_issuer(facts)}, {days} days left", soon


def _handshake(host: str, port: int, context: ssl.SSLContext, name: str | None, seconds: float) -> dict[str, Any]:
    """The peer's certificate as the ssl module tells it; empty where `context` does not verify."""
    with socket.create_connection((host, port), seconds) as raw, context.wrap_socket(raw, server_hostname=name) as secured:
        return dict(secured.getpeercert() or {})


def _invalid(host: str, port: int, error: ssl.SSLCertVerificationError, full_name: str, seconds: float) -> Broken:
    facts = _unverified(host, port, seconds)
    shown = f" It names {', '.join(_names(facts)) or 'nothing'}, issued by {_issuer(facts)}." if facts else ""
    if error.verify_code in (62, 63, 64):  # host name, address
        return _partial(host, full_name, shown) or Broken(f"the certificate is not for {host}.{shown}", f"{WHERE}qmdctl health")
    if error.verify_code == 10:
        ended = f" on {facts['notAfter']}" if facts else ""
        return Broken(f"the certificate has ended{ended}.{shown}", f"{WHERE}qmdctl health; and is the clock of this machine right?")
    if error.verify_code == 9:
        return Broken(f"the certificate is not valid yet: the clock of this machine is behind.{shown}", "set this machine's clock")
    file = os.environ.get("SSL_CERT_FILE", "")
    if file and not Path(file).is_file():
        return Broken(f"SSL_CERT_FILE names {file}, which is not there: no authority is trusted", "unset SSL_CERT_FILE, or name a file")
    return Broken(
        f"the certificate's authority is not trusted here: {error.verify_message}.{shown}",
        "a proxy that inspects traffic, or an authority of your own: name its certificates, SSL_CERT_FILE=FILE (QMD clients on Node want "
        "NODE_EXTRA_CA_CERTS=FILE). On a tailnet nothing should stand between: is the name answered by another machine?",
    )


def _unverified(host: str, port: int, seconds: float) -> dict[str, Any]:
    """What an invalid certificate says of itself; empty where it cannot be had. Nothing is sent on that connection.

    The ssl module tells only of verified certificates, so the certificate is made its own authority.
    """
    try:
        blind = ssl.create_default_context()
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((host, port), seconds) as raw, blind.wrap_socket(raw, server_hostname=host) as secured:
            der = secured.getpeercert(binary_form=True) or b""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=der)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(NO_CHECK_TIME)
        return _handshake(host, port, context, host, seconds)
    except (OSError, ValueError):
        return {}


def _no_tls(host: str, error: ssl.SSLError, full_name: str) -> Broken:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    if "wrong version number" in reason or "http request" in reason:
        return Broken("the port speaks plain HTTP, not TLS", f"an http:// address, or {WHERE}qmdctl health")
    return _partial(host, full_name) or Broken(
        f"the node has no certificate for {host} ({reason}): HTTPS is off on the tailnet, or the certificate is still on order",
        f"switch HTTPS on: https://login.tailscale.com/admin/dns; {WHERE}qmdctl health",
    )


def _partial(host: str, full_name: str, shown: str = "") -> Broken | None:
    """A certificate is for a full name alone: not for the short one, not for an address."""
    try:
        kind = f"the address {ipaddress.ip_address(host)}"
    except ValueError:
        if "." in host or host == "localhost":
            return None
        kind = f"the short name {host}"
    return Broken(f"{kind} has no certificate: the full name is needed.{shown}", f"https://{full_name or 'qmd-embed.TAILNET.ts.net'}")


def _names(facts: Mapping[str, Any]) -> list[str]:
    return [str(value) for _, value in facts.get("subjectAltName", ())]


def _issuer(facts: Mapping[str, Any]) -> str:
    fields = dict(pair for part in facts.get("issuer", ()) for pair in part)
    return " ".join(str(fields[key]) for key in ("organizationName", "commonName") if key in fields) or "nobody named"
