"""`python -m embed_service …` where its packages are: in a container of the embed image, of its own or the running one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Protocol

from qmdctl.compose import Compose
from qmdctl.engine import Engine, answering
from qmdctl.errors import MissingError
from qmdctl.process import ProcessError, stream

CONTAINER = f"qmd-models-{os.getpid()}"
Lines = Generator[dict[str, Any], None, None]
ATTENDED = "--attended"  # of a command that is undone when its stdin is closed
USAGE = 2  # argparse's status for a command that it does not know, and the service's for a setting that cannot be used


class Unknown(MissingError):
    """The image has no such command."""


class Inside(Protocol):
    """What runs the service's own commands; a test's runs them on this machine."""

    def lines(self, *arguments: str) -> Lines:
        """The JSON objects that the command prints, as they come. A line with "error" is not raised; what goes wrong otherwise is.

        Raises Unknown where the service is older than the command.
        """


class OneOff:
    """In a container of its own, with the settings that `compose` was given."""

    def __init__(self, compose: Compose, *, echo: bool = True) -> None:
        self._compose, self._echo = compose, echo

    def lines(self, *arguments: str) -> Lines:
        run = ("run", "--rm", "--name", CONTAINER, "--no-deps", "--no-TTY", "--quiet-pull", "embed")
        yield from _of_compose(self._compose, self._compose.command(*run, *arguments), self._echo)

    @staticmethod
    def stop(engine: Engine) -> None:
        """End it after Ctrl-C: Compose may end before it has handed the signal on, and the container would go on by itself."""
        with contextlib.suppress(MissingError), answering():  # mostly it has ended already
            engine.client.api.remove_container(CONTAINER, force=True)


class Running:
    """In the running container of the embed service."""

    def __init__(self, compose: Compose, *, echo: bool = True) -> None:
        self._compose, self._echo = compose, echo

    def lines(self, *arguments: str) -> Lines:
        command = self._compose.command("exec", "--no-TTY", "embed", "python", "-m", "embed_service", *arguments)
        yield from _of_compose(self._compose, command, self._echo)


def _of_compose(compose: Compose, command: list[str], echo: bool) -> Lines:
    if echo:
        compose.echo(command)
    yield from json_lines(command, compose.folder, compose.environment())


def json_lines(command: list[str], folder: Path, environment: Mapping[str, str]) -> Lines:
    """The JSON objects that a command of the embed service prints. Raises Unknown and what `stream` raises."""
    said = False
    try:
        for text in stream(command, cwd=folder, environment=environment, attended=ATTENDED in command):
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    said = True
                    yield line
    except ProcessError as error:
        if said:  # its own sentence says why
            return
        if error.completed.returncode == USAGE:
            raise Unknown(
                "The embed service refused the command (its words are above): its image is older than this qmdctl, or a setting is wrong",
                "qmdctl up, which builds the image of this version; then again",
            ) from None
        raise
