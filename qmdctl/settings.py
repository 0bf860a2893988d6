"""What is in force: the value and the origin of each key that the compose files take.

There is no second list of keys: the compose files' `${KEY:-default}` are the keys and their defaults, the comments of .env.example say
what each is for.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qmdctl import env_file
from qmdctl.compose_files import compose_files, defaults, fixed, interpolate, key_comments, service_profiles
from qmdctl.env_file import EnvFile
from qmdctl.errors import ConfigurationError
from qmdctl.project import Project

CPU_FILE = "compose.cpu.yaml"
NO_SECRET = "./secrets/none"  # an empty file that stands for a secret that is not set
# Keys that Compose and Docker themselves take.
FOREIGN_PREFIXES = ("COMPOSE_", "DOCKER_", "BUILDKIT_", "BUILDX_")
COMPOSE_KEYS = ("COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES", "COMPOSE_FILE")
# In either case; Compose, Docker and much else take them, so one that is not ours is no misspelling.
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "NO_PROXY")
LIKENESS = 0.84  # difflib's ratio from which an unknown key counts as a known one misspelt


@dataclass(frozen=True)
class Key:
    """One variable of the compose files. `default` is the compose file's; `about` the comment above it in .env.example."""

    name: str
    default: str
    about: str


@dataclass(frozen=True)
class Value:
    """A key's value in force and where it comes from: `default`, `.env`, `environment`, `flag`, or a compose file that fixes it."""

    value: str
    origin: str


class Settings(Mapping[str, str]):
    """What is in force. `settings["EMBED_PORT"]` is text; a key that is unset and has no default is empty."""

    def __init__(self, project: Project, keys: dict[str, Key], values: dict[str, Value], env: EnvFile, files: list[Path]) -> None:
        self.project = project
        self.keys_known = keys
        self.values_in_force = values
        self.env = env
        self.files = files

    def __getitem__(self, name: str) -> str:
        return self.values_in_force[name].value if name in self.values_in_force else ""

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_in_force)

    def __len__(self) -> int:
        return len(self.values_in_force)

    def __contains__(self, name: object) -> bool:
        return name in self.values_in_force

    def origin(self, name: str) -> str:
        return self.values_in_force[name].origin if name in self.values_in_force else "unset"

    def port(self, name: str) -> int:
        """A port. ConfigurationError when the value is none."""
        text = self[name]
        if not text.isdecimal() or not 1 <= int(text) <= 65535:
            raise ConfigurationError(f"{name}={text!r} is not a port ({self.origin(name)})", f"set {name} to a number from 1 to 65535")
        return int(text)

    @property
    def name(self) -> str:
        """Compose's project name."""
        return self["COMPOSE_PROJECT_NAME"] or "qmd"

    @property
    def profiles(self) -> list[str]:
        return [name.strip() for name in self["COMPOSE_PROFILES"].split(",") if name.strip()]

    @property
    def services(self) -> list[str]:
        """The services that these profiles start, in the order in which they start."""
        chosen = {*self.profiles, "*"}
        return [name for name, profiles in service_profiles(self.files).items() if not profiles or chosen & set(profiles)]

    @property
    def every_service(self) -> list[str]:
        """Those that these profiles leave out as well."""
        return list(service_profiles(self.files))

    @property
    def cpu(self) -> bool:
        """Whether the stack runs without a GPU (compose.cpu.yaml is among its files)."""
        return any(file.name == CPU_FILE for file in self.files)


def load_settings(
    project: Project, flags: Mapping[str, str] | None = None, environment: Mapping[str, str] = os.environ, *, need_env: bool = True
) -> Settings:
    """Read .env and the compose files. ConfigurationError for a missing .env (if `need_env`), a bad line or a misspelt key."""
    env = EnvFile(".env")
    if project.env_path.exists():
        env = env_file.read(project.env_path).check()
    elif need_env:
        raise ConfigurationError(f"{project.folder} has no .env yet", "qmdctl init (or: cp .env.example .env)")
    flags = flags or {}
    files = compose_files(project.folder, {**env.values, **environment, **flags})
    keys = _keys(project, files)
    refuse_misspelt(env, keys)
    names = [*keys, *(name for name in (*env.values, *flags, *COMPOSE_KEYS) if name not in keys)]
    force = _Force(keys, ((flags, "flag"), (environment, "environment"), (env.values, ".env")))
    values = {name: force.value(name) for name in names}
    values.update({name: Value(value, file) for name, (value, file) in fixed(files).items() if name in values})
    return Settings(project, keys, values, env, files)


def _keys(project: Project, files: list[Path]) -> dict[str, Key]:
    about = key_comments(project.folder / ".env.example")
    values = {**dict.fromkeys(about, ""), **defaults(files)}
    values = {name: "" if default == NO_SECRET else default for name, default in values.items()}
    return {name: Key(name, default, about.get(name, "")) for name, default in values.items()}


@dataclass(frozen=True)
class _Force:
    """Default < .env < process environment < flags. As in Compose's `${KEY:-default}`, an empty value leaves the default in force.

    An empty flag is still the flag's: Compose has to be told of it, or it would take the value in .env.
    """

    keys: Mapping[str, Key]
    sources: tuple[tuple[Mapping[str, str], str], ...]

    def value(self, name: str) -> Value:
        source, origin = next((pair for pair in self.sources if name in pair[0]), ({}, ""))
        if source.get(name):
            return Value(source[name], origin)
        default = self.keys[name].default if name in self.keys else ""
        default = interpolate(default, lambda other: self.value(other).value)
        return Value(default, "flag" if origin == "flag" else "default" if default else "unset")


def refuse_misspelt(env: EnvFile, keys: Mapping[str, Key]) -> None:
    """ConfigurationError for a key of .env that looks like one of ours misspelt; other unknown keys pass."""
    for name in env.values:
        if name in keys or name.startswith(FOREIGN_PREFIXES) or name.upper() in PROXIES:
            continue
        near = difflib.get_close_matches(name.upper(), keys, n=1, cutoff=LIKENESS)
        if near:
            raise ConfigurationError(f"{env.name}, line {env.line_of[name]}: {name} is not known", f"did you mean {near[0]}?")
