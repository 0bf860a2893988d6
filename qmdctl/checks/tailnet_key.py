"""The file with the auth key: one that lets both nodes in, and lets them stay. What is in it is never shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding
from qmdctl.checks.tailnet_services import started, with_login

KEYS_PAGE = "login.tailscale.com/admin/settings/keys"
NEW_KEY = f"make a reusable auth key with a tag at {KEYS_PAGE}"
OAUTH_ATTRIBUTES = ("ephemeral", "preauthorized", "baseURL")  # feature/oauthkey/oauthkey.go
TRUE = ("1", "t", "T", "true", "TRUE", "True")


def check(context: Context) -> Iterator[Finding]:
    sidecars, name = started(context), context.settings["TS_AUTHKEY_FILE"]
    logged_in = with_login(context, sidecars)
    whole = len(logged_in) == len(sidecars)
    if not name:
        text = "both nodes are logged in" if whole else "no key: a sidecar without a login shows a link"
        yield Finding("tailnet_key", "ok", text)
        return
    path = context.settings.project.folder / Path(name).expanduser()
    if not path.is_file():
        yield _absent(name, path, whole)
        return
    try:
        text = path.read_bytes().decode("utf-8")
    except PermissionError:
        raise Unavailable(f"{path} cannot be read by this user") from None
    except UnicodeDecodeError:
        yield _failure("the key file is not text", "", f"{NEW_KEY} and write it into {path}")
        return
    problems = list(_content(context, text.strip(), path)) if text.strip() else []
    if path.stat().st_mode & 0o077:
        problems.append(Finding("tailnet_key", "warning", f"{path.name} can be read by others on this machine", "", f"chmod 600 {path}"))
    yield from problems
    if not problems and not text.strip():
        yield Finding(
            "tailnet_key",
            "ok",
            f"{path.name} is empty: {'both nodes are logged in' if whole else 'a sidecar without a login shows a link'}",
        )
    elif not problems:
        done = f"; it is no longer needed, both nodes are logged in: truncate -s 0 {path}" if whole else ""
        yield Finding("tailnet_key", "ok", f"{path.name} holds {_kind(text.strip())}{done}")


def _failure(what: str, why: str, fix: str) -> Finding:
    return Finding("tailnet_key", "failure", what, why, fix, True)


def _absent(name: str, path: Path, whole: bool) -> Finding:
    if whole:
        fix = f"the nodes are logged in and it is no longer needed: empty TS_AUTHKEY_FILE in .env, or install -m 600 /dev/null {path}"
    else:
        fix = f"{NEW_KEY}; install -m 600 /dev/null {path}, then write it into that file; or empty TS_AUTHKEY_FILE in .env"
    return _failure(f"TS_AUTHKEY_FILE={name} is not a file", "Compose cannot mount it", fix)


def _kind(key: str) -> str:
    return "an OAuth client secret" if key.startswith("tskey-client-") else "an auth key"


def _content(context: Context, key: str, path: Path) -> Iterator[Finding]:
    if re.search(r"\s", key):
        why = "Tailscale takes the whole file for one key"
        yield _failure("the key file has several lines or words", why, f"leave the key alone in {path}, without a comment")
    elif key[0] in "'\"":
        yield _failure("the key stands in quotes", "Tailscale takes them for a part of it", f"write it without quotes into {path}")
    elif key.startswith("tskey-api-"):
        yield _failure("the key is an API token", "it lets no machine into the tailnet", f"{NEW_KEY} and write it into {path}")
    elif key.startswith("tskey-client-"):
        yield from _oauth(context, key, path)
    elif re.match(r"tskey-(scim|webhook)-", key):
        yield _failure("the key is none that lets a machine in", "", f"{NEW_KEY} and write it into {path}")
    elif not key.startswith("tskey-") and not context.settings["TS_LOGIN_SERVER"]:
        what = "the key does not begin with tskey-"
        yield Finding("tailnet_key", "warning", what, "Tailscale's auth keys do", f"{NEW_KEY} and write it into {path}")


def _oauth(context: Context, key: str, path: Path) -> Iterator[Finding]:
    given = dict(parse_qsl(key.partition("?")[2], keep_blank_values=True))
    whole = f"end the secret in {path} with ?ephemeral=false&preauthorized=true"
    for name in given:
        if name not in OAUTH_ATTRIBUTES:
            called = f" {name}" if name.isalpha() and len(name) < 16 else ""  # what else it is may be a part of the secret
            yield _failure(f"the OAuth client secret has an attribute{called} that Tailscale refuses", "", whole)
    if given.get("ephemeral", "true") in TRUE:
        why = "the nodes would vanish while they are off, and lose their names and certificates"
        yield _failure("the OAuth client secret makes ephemeral nodes", why, whole)
    if given.get("preauthorized", "false") not in TRUE:
        what = "the OAuth client secret does not approve the nodes"
        yield Finding("tailnet_key", "warning", what, "where the tailnet approves devices, somebody has to do it by hand", whole)
    if not context.settings["TS_TAGS"] and "--advertise-tags" not in context.settings["TS_EXTRA_ARGS"]:
        what = "the key is an OAuth client secret, and TS_TAGS is empty"
        yield _failure(what, "Tailscale refuses it without tags", "set TS_TAGS in .env to a tag of that client, such as tag:qmd-server")
