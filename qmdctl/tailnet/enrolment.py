"""What `init` asks about the tailnet: whether, and by a key or by a link."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qmdctl.errors import ConfigurationError, InterruptedByUser
from qmdctl.terminal import Terminal

KEYS_PAGE = "https://login.tailscale.com/admin/settings/keys"
TAG = "tag:qmd-server"
OAUTH, API = "tskey-client-", "tskey-api-"
OAUTH_ATTRIBUTES = "?ephemeral=false&preauthorized=true"  # without them the node is ephemeral and waits for approval
HOW = (
    f"Make a key at {KEYS_PAGE}: reusable (two nodes register), pre-approved, with the tag {TAG} (which the policy needs an owner for:"
    " docs/tailnet.md). An OAuth client secret with the scope auth_keys does as well."
)


@dataclass(frozen=True)
class Enrolment:
    """`values` go into .env; `key` is the content of the key file, None where there is none to write."""

    values: dict[str, str] = field(default_factory=dict)
    key: str | None = None


def enrol(
    terminal: Terminal, before: dict[str, str], wanted: bool | None, key_file: Path | None, tags: str | None, asking: bool
) -> Enrolment:
    """`before`: .env as it is. `wanted`: --tailnet or --no-tailnet, None where neither was given.

    ConfigurationError for a key file that cannot be used, InterruptedByUser for Ctrl-C.
    """
    there = "tailnet" in before.get("COMPOSE_PROFILES", "").split(",")
    if wanted is None:
        wanted = (
            there or key_file is not None or (asking and _ask("Give the services private HTTPS names on your tailnet (Tailscale)", True))
        )
    if not wanted:
        if key_file is not None:
            raise ConfigurationError("--no-tailnet and --ts-authkey-file exclude each other", "give one of them")
        return Enrolment()
    key = None
    if key_file is not None:
        key = read_key(key_file, own_server=bool(before.get("TS_LOGIN_SERVER")))
    elif asking and not before.get("TS_AUTHKEY_FILE") and not there:
        terminal.note(HOW)
        key = ask_key(own_server=bool(before.get("TS_LOGIN_SERVER")))
        if key is None:
            terminal.note("Without a key `qmdctl up` shows a login link, with its QR code, for each of the two nodes.")
    values = {"COMPOSE_PROFILES": "tailnet"}
    if tags is not None:
        values["TS_TAGS"] = tags
    elif key and key.startswith(OAUTH) and not before.get("TS_TAGS"):
        values["TS_TAGS"] = TAG
        terminal.note(f"An OAuth client secret registers nodes with tags alone: TS_TAGS={TAG}, which has to be the client's.")
    return Enrolment(values, key)


def read_key(path: Path, own_server: bool) -> str:
    """The key in the file, as the sidecars need it."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--ts-authkey-file: {path} cannot be read: {error}", "name a file with the key alone") from None
    return checked(text, own_server, f"--ts-authkey-file: {path}")


def ask_key(own_server: bool) -> str | None:
    """None for an empty answer: by a link."""
    import typer

    while True:
        try:
            answer: str = typer.prompt("Auth key [empty: by a login link]", default="", show_default=False, hide_input=True, err=True)
        except typer.Abort:
            raise InterruptedByUser("Nothing was written.") from None
        if not answer.strip():
            return None
        try:
            return checked(answer, own_server, "That")
        except ConfigurationError as error:
            typer.echo(f"{error.message}; {error.fix}", err=True)


def checked(text: str, own_server: bool, where: str) -> str:
    """One key, an OAuth secret with the attributes that make a lasting node. ConfigurationError where it is no auth key."""
    key = text.strip()
    if not key or len(key.split()) != 1:
        raise ConfigurationError(f"{where} is not one auth key", f"make one at {KEYS_PAGE}")
    if key.startswith(API):
        raise ConfigurationError(f"{where} is an API access token, which registers no machine", f"make an auth key at {KEYS_PAGE}")
    if not own_server and not key.startswith(("tskey-auth-", OAUTH)):
        raise ConfigurationError(
            f"{where} does not begin with tskey-auth- or tskey-client-, as Tailscale's keys do",
            f"make one at {KEYS_PAGE}; for a control server of your own set TS_LOGIN_SERVER in .env first",
        )
    return key + OAUTH_ATTRIBUTES if key.startswith(OAUTH) and "?" not in key else key


def _ask(question: str, default: bool) -> bool:
    import typer

    try:
        return typer.confirm(question, default=default, err=True)
    except typer.Abort:
        raise InterruptedByUser("Nothing was written.") from None
