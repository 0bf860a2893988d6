"""The three places that a model can take, and how a user names one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qmdctl.errors import ConfigurationError
from qmdctl.settings import Settings

# The hub's own rule for the names of organisations and repositories.
ID = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,95})/[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,95})")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*")


@dataclass(frozen=True)
class Role:
    """`key` and `revision_key` stand in .env; `service` is Compose's name of what loads it; `what` is for sentences."""

    name: str
    key: str
    revision_key: str
    service: str
    what: str


ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role("embed", "EMBED_MODEL", "EMBED_REVISION", "embed", "embedding model"),
        Role("rerank", "RERANK_MODEL", "RERANK_REVISION", "embed", "reranker"),
        Role("generate", "VLLM_MODEL", "VLLM_REVISION", "vllm", "generation model"),
    )
}
REVISION_OF = {role.key: role.revision_key for role in ROLES.values()}


@dataclass(frozen=True)
class Wanted:
    """A model as the user named it: a hub id with or without a revision, or a folder as the container sees it."""

    role: Role
    id: str
    revision: str | None = None

    @property
    def folder(self) -> bool:
        return self.id.startswith("/")

    @property
    def text(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def parse(role: str, text: str) -> Wanted:
    """ConfigurationError for a role that is none, and for a name that the hub could not have."""
    if role not in ROLES:
        raise ConfigurationError(f"{role!r} is not a place for a model", f"choose from {', '.join(ROLES)}")
    if text.startswith("/"):
        return Wanted(ROLES[role], text)
    if text.startswith(("./", "../", "~")):
        raise ConfigurationError(f"{text}: a folder is named as the container sees it", "write it from the root on: /models/…")
    model, at, revision = text.partition("@")
    if ID.fullmatch(model) is None or "--" in model or ".." in model:
        raise ConfigurationError(f"{model!r} is not the id of a model", "write organisation/name, as the page of the model has it")
    if at and REVISION.fullmatch(revision) is None:
        raise ConfigurationError(f"{revision!r} is not a revision", f"write {model}@main, another branch, a tag or a commit")
    return Wanted(ROLES[role], model, revision or None)


def configured(settings: Settings, role: Role) -> tuple[str, str | None]:
    """(id, revision) that the settings in force give; ("", None) where the role's service is not among the stack's."""
    if role.service not in settings.services:
        return "", None
    return settings[role.key], settings[role.revision_key] or None


def writable(settings: Settings, role: Role) -> None:
    """ConfigurationError where a value in .env would not count: the environment or a compose file has the last word."""
    for key in (role.key, role.revision_key):
        origin = settings.origin(key)
        if origin == "environment":
            raise ConfigurationError(f"{key} is set in this shell's environment, which counts before .env", f"unset {key}, then again")
        if origin not in ("default", "unset", ".env"):
            raise ConfigurationError(f"{origin} sets {key} whatever .env says", f"let it take ${{{key}}} there, or change it there")
