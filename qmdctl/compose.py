"""`docker compose …` for everything that changes the stack; the exact command is echoed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from qmdctl.process import Completed, run
from qmdctl.settings import Settings
from qmdctl.terminal import Terminal


class Compose:
    """Compose in the project's folder. It reads the same .env; `files` are named only where a flag changes them."""

    def __init__(self, settings: Settings, terminal: Terminal) -> None:
        self._settings = settings
        self._terminal = terminal

    @property
    def folder(self) -> Path:
        return self._settings.project.folder

    def command(self, *arguments: str) -> list[str]:
        named = []
        if self._settings.origin("COMPOSE_FILE") == "flag":
            named = [part for file in self._settings.files for part in ("-f", file.name)]
        return ["docker", "compose", *named, *arguments]

    def environment(self) -> dict[str, str]:
        """What Compose gets beside our own environment: the values that flags gave. Bakes and hints are off."""
        flags = {name: value.value for name, value in self._settings.values_in_force.items() if value.origin == "flag"}
        flags.pop("COMPOSE_FILE", None)
        return {**flags, "COMPOSE_MENU": "false", "DOCKER_CLI_HINTS": "false"}

    def run(
        self,
        *arguments: str,
        capture: bool = False,
        check: bool = True,
        echo: bool = True,
        environment: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> Completed:
        """Run to its end; output goes to stderr unless `capture`. ProcessError when it fails and `check` is set."""
        command = self.command(*arguments)
        if echo:
            self.echo(command)
        full = {**self.environment(), **(environment or {})}
        return run(
            command, cwd=self._settings.project.folder, environment=full, capture=capture, check=check, timeout_seconds=timeout_seconds
        )

    def echo(self, command: list[str]) -> None:
        """Show a command that another function runs."""
        self._terminal.echo_command(self.shown(command))

    def shown(self, command: list[str]) -> str:
        """The command as a user in the current folder would type it."""
        flags = {k: v for k, v in self.environment().items() if k in self._settings and self._settings.origin(k) == "flag"}
        text = " ".join([*(f"{k}={shlex.quote(v)}" for k, v in flags.items()), shlex.join(command)])
        folder = self._settings.project.folder
        return text if os.path.samefile(folder, os.getcwd()) else f"cd {shlex.quote(str(folder))} && {text}"
