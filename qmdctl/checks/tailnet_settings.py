"""The keys of .env that name the nodes: what Tailscale would refuse, or take for something else, without a word."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding
from qmdctl.checks.tailnet_services import started
from qmdctl.settings import Settings
from qmdctl.tailnet import HOSTNAME_KEYS
from qmdctl.tailnet.services import NAMES as SERVICES

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)  # RFC 1123, 2.1
TAG = re.compile(r"tag:[A-Za-z][A-Za-z0-9-]*")  # tailcfg.CheckTag
BOOLEANS = ("1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False")  # Go's strconv.ParseBool
OLDEST = (
    1,
    102,
    3,
)  # knows TS_BOOT_TIMEOUT; before, a login link lasts a minute. Before 1.100 a certificate is ordered at the first request


def check(context: Context) -> Iterator[Finding]:
    sidecars, settings = started(context), context.settings
    problems = [*_names(settings, sidecars), *_tags(settings), *_login_server(settings), *_arguments(settings), *_others(settings)]
    yield from problems
    if not problems:
        names = ", ".join(settings[HOSTNAME_KEYS[name]] for name in sidecars)
        yield Finding("tailnet_settings", "ok", f"nodes {names}")


def image_version(image: str) -> tuple[int, int, int] | None:
    """(1, 102, 3) of tailscale/tailscale:v1.102.3; None where the tag does not tell; without its last number it is the newest."""
    found = re.search(r":v?(\d+)\.(\d+)(?:\.(\d+)|$|-)", image)
    return (int(found[1]), int(found[2]), int(found[3] or 999)) if found else None


def _failure(what: str, why: str, fix: str) -> Finding:
    return Finding("tailnet_settings", "failure", what, why, fix, True)


def _names(settings: Settings, sidecars: list[str]) -> Iterator[Finding]:
    names = {HOSTNAME_KEYS[name]: settings[HOSTNAME_KEYS[name]] for name in sidecars}
    for key, name in names.items():
        if not LABEL.fullmatch(name):
            why = "it is the first part of a DNS name; the tailnet adds the rest"
            yield _failure(f"{key}={name} is no name of a machine", why, f"set {key} to letters, digits and dashes, such as qmd-embed")
    shared = {key: name for key, name in names.items() if settings["TAILNET_SERVICE"] and name.lower() in SERVICES.values()}
    for key, name in shared.items():
        # `up` gives these names of their own, and writes them into .env.
        own = name in [SERVICES[sidecar] for sidecar in sidecars if HOSTNAME_KEYS[sidecar] == key]
        what, why = f"{key}={name} is the name of the Service svc:{name.lower()}", f"a machine and a Service cannot both be called {name}"
        fix = "qmdctl up writes another into .env" if own else f"set {key}={name.lower()}-NAME-OF-THIS-BOX"
        yield Finding("tailnet_settings", "warning" if own else "failure", what, why, fix, not own)
    if len(names) != len({name.lower() for name in names.values()}):
        why = "the second one to log in would become another name, with -1 behind it"
        yield _failure(f"{' and '.join(names)} are the same", why, "give one of them another name")


def _tags(settings: Settings) -> Iterator[Finding]:
    tags = settings["TS_TAGS"]
    bad = [tag for tag in tags.split(",") if not TAG.fullmatch(tag)] if tags else []
    if bad:
        why = "a tag is tag: with a letter, then letters, digits and dashes; several are joined by commas without a space"
        yield _failure(f"TS_TAGS: {bad[0]!r} is no tag", why, "set TS_TAGS=tag:qmd-server")
    if settings["TAILNET_SERVICE"] not in ("", "1"):
        what = f"TAILNET_SERVICE={settings['TAILNET_SERVICE']} turns the Services on, as any value does"
        yield _failure(what, "", "set TAILNET_SERVICE=1, or leave it empty")
    elif settings["TAILNET_SERVICE"] and not tags:
        what = "TAILNET_SERVICE is set, and TS_TAGS is empty"
        fix = "set TS_TAGS=tag:qmd-server, unless the auth key itself gives the tag"
        yield Finding("tailnet_settings", "warning", what, "only a node with a tag may host a Service", fix)


def _login_server(settings: Settings) -> Iterator[Finding]:
    text = settings["TS_LOGIN_SERVER"]
    if not text:
        return
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or re.search(r"\s", text):
        yield _failure(f"TS_LOGIN_SERVER={text} is no address", "", "set TS_LOGIN_SERVER to one such as https://headscale.example.com")
    elif parts.scheme == "http" and not _is_address(host):
        what, why = f"TS_LOGIN_SERVER={text} is http", "with a name in it Tailscale tries https at port 443 of that host as well"
        yield Finding("tailnet_settings", "warning", what, why, "give the login server a certificate, and TS_LOGIN_SERVER https://")
    elif parts.scheme == "https" and _is_address(host):
        what, why = f"TS_LOGIN_SERVER={text} has an address in place of a name", "few certificates hold for an address"
        yield Finding("tailnet_settings", "warning", what, why, "name the server as its certificate does")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _arguments(settings: Settings) -> Iterator[Finding]:
    text = settings["TS_EXTRA_ARGS"]
    words = text.split()
    if any(re.match(r"--?auth-?key\b", word) for word in words) or "tskey-" in text:
        fix = "write it to a file, such as secrets/ts_authkey, set TS_AUTHKEY_FILE to that file, and take it out of TS_EXTRA_ARGS"
        yield _failure("TS_EXTRA_ARGS has an auth key in it", "docker inspect shows it", fix)
    if "'" in text or '"' in text:
        yield _failure("TS_EXTRA_ARGS has quotes in it", "it is split at spaces, and quotes stay in the words", "write it without quotes")
    for option, key in (
        ("hostname", "EMBED_HOSTNAME and VLLM_HOSTNAME"),
        ("advertise-tags", "TS_TAGS"),
        ("login-server", "TS_LOGIN_SERVER"),
    ):
        if any(re.match(rf"--?{option}\b", word) for word in words):
            what = f"TS_EXTRA_ARGS has --{option}"
            yield Finding("tailnet_settings", "warning", what, f"{key} is the place for it, which qmdctl knows", f"use {key} in its place")


def _others(settings: Settings) -> Iterator[Finding]:
    value = settings["TS_NO_LOGS_NO_SUPPORT"]
    if value and value not in BOOLEANS:
        yield _failure(f"TS_NO_LOGS_NO_SUPPORT={value} is neither true nor false", "Tailscale ends with it", "set it to true or false")
    version = image_version(settings["TAILSCALE_IMAGE"])
    if version and version < OLDEST:
        what = f"{settings['TAILSCALE_IMAGE']} is older than {'.'.join(map(str, OLDEST))}"
        why = (
            "a login link of it lasts a minute; before 1.100 it orders a certificate at the first request only, so qmdctl up waits for one"
        )
        yield Finding("tailnet_settings", "warning", what, why, "take TAILSCALE_IMAGE out of .env, or set a later tag")
    trusted = [name.strip() for name in settings["TRUSTED_SIDECARS"].split(",")]
    if settings["REQUIRE_CAPABILITY"] and not {"ts-embed", "ts-vllm"} & set(trusted):
        why = "the capability is believed only from there; where these are not the sidecars' addresses, everybody is refused"
        what = f"TRUSTED_SIDECARS={settings['TRUSTED_SIDECARS']} names no sidecar"
        yield Finding("tailnet_settings", "warning", what, why, "take TRUSTED_SIDECARS out of .env")
