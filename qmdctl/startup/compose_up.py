"""`docker compose up` with its output both shown and kept: what it says when it fails is matched with the known symptoms."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from qmdctl.compose import Compose
from qmdctl.errors import ConfigurationError, MissingError, QmdError
from qmdctl.process import Completed, ProcessError
from qmdctl.symptoms import match
from qmdctl.terminal import Terminal

KEPT_BYTES = 64 * 1024
OFFLINE = ("no_network", "rate_limit")  # in symptoms.yaml: what keeps a build from its base image, and nothing else is wrong
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")


def compose_up(compose: Compose, terminal: Terminal, services: list[str], facts: Mapping[str, str], has_embed_image: bool = False) -> None:
    """`docker compose up -d --build --remove-orphans`. MissingError for a known symptom, else QmdError with what Compose said last.

    A build may ask the base image's registry even where nothing changed; without a network the embed image that is here does.
    """
    done = _up(compose, terminal, services, "--build")
    symptom = match("compose", _lines(done), facts) if not done.ok else None
    if symptom and symptom.name in OFFLINE and has_embed_image:
        terminal.note(f"{symptom.cause} The embed image that is here is used as it is.", "yellow")
        done = _up(compose, terminal, services, "--no-build")
        symptom = match("compose", _lines(done), facts) if not done.ok else None
    if done.ok:
        return
    if symptom:
        raise MissingError(symptom.cause, symptom.fix)
    lines = _lines(done)
    last = next((line.strip() for line in reversed(lines) if "rror" in line), lines[-1].strip() if lines else f"status {done.returncode}")
    raise QmdError(f"docker compose up failed: {last[:500]}", "its whole output is above; qmdctl doctor looks for what is missing")


def _up(compose: Compose, terminal: Terminal, services: list[str], build: str) -> Completed:
    command = compose.command("up", "--detach", build, "--remove-orphans", *services)
    terminal.echo_command(compose.shown(command))
    return run_shown(command, compose.folder, compose.environment(), tty=terminal.live)


def _lines(done: Completed) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.strip()]


def changed(compose: Compose, hashes: Mapping[str, str]) -> bool:
    """Whether the containers (service → configuration hash) were made from another configuration than .env and the files give now."""
    try:
        done = compose.run("config", "--hash", "*", capture=True, echo=False)
    except ProcessError as error:
        said = error.completed.stderr.strip().splitlines()
        raise ConfigurationError(
            f"Compose refuses the configuration: {said[-1] if said else error.message}", "correct .env or the compose file it names"
        ) from None
    now = dict(line.split()[:2] for line in done.stdout.splitlines() if line.strip())
    return any(now.get(service) != value for service, value in hashes.items())


def run_shown(command: list[str], cwd: Path, environment: Mapping[str, str], tty: bool) -> Completed:
    """Run with both outputs going to our stderr as they come. The last 64 KiB are in the result's `stderr`.

    `tty`: the program is given a terminal of our own stderr's size, so that it draws its progress as it would by itself.
    """
    reader, writer = os.openpty() if tty else os.pipe()
    if tty:
        _copy_size(writer)
    try:
        child = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer
        )
    except OSError as error:
        raise MissingError(f"{command[0]} cannot be run: {error.strerror}", f"install {command[0]}, or put it on PATH") from None
    finally:
        os.close(writer)
    kept = bytearray()
    try:
        while part := _read(reader):
            sys.stderr.buffer.write(part)
            sys.stderr.flush()
            kept = (kept + part)[-KEPT_BYTES:]
        status = child.wait()
    except BaseException:
        child.terminate()  # Ctrl-C: Compose ends; containers that it has started go on
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        raise
    finally:
        os.close(reader)
    text = CONTROL.sub("", kept.decode("utf-8", "replace")).replace("\r\n", "\n")
    return Completed(tuple(command), status, "", text)


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # a terminal whose other end is closed says EIO
        return b""


def _copy_size(writer: int) -> None:
    import fcntl
    import termios

    with contextlib.suppress(OSError):
        size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(writer, termios.TIOCSWINSZ, size)
