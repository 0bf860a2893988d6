"""`docker compose up` with its output both shown and kept: what it says when it fails is matched with the known symptoms."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from qmdctl.compose import Compose
from qmdctl.errors import ConfigurationError, MissingError, QmdError, WaitTimeoutError
from qmdctl.process import Completed, ProcessError, uninterrupted
from qmdctl.symptoms import Symptom, match
from qmdctl.terminal import Terminal

KEPT_BYTES = 64 * 1024
OFFLINE = ("no_network", "rate_limit")  # in symptoms.yaml: what keeps a build from its base image, and nothing else is wrong
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")


def remove(compose: Compose, terminal: Terminal, services: list[str]) -> None:
    """Containers of services whose profile was turned off: Compose would leave them running, and start them again with the machine."""
    if services:
        terminal.note(f"No longer part of the stack (COMPOSE_PROFILES): {', '.join(services)}", "dim")
        compose.run("--profile", "*", "rm", "--stop", "--force", *services)


def compose_up(
    compose: Compose,
    terminal: Terminal,
    services: list[str],
    facts: Mapping[str, str],
    has_embed_image: bool = False,
    timeout_seconds: float | None = None,
    again: str = "qmdctl up",
    build: bool = True,
) -> None:
    """`docker compose up -d --build --remove-orphans`; `build` off: `--no-build`.

    MissingError for a known symptom, else QmdError with what Compose said last.
    A build may ask the base image's registry even where nothing changed; without a network the embed image that is here does.
    WaitTimeoutError after `timeout_seconds`, which names `again` as the command that goes on.
    """

    def run(build: str) -> tuple[Completed, Symptom | None]:
        command = compose.command("up", "--detach", build, "--remove-orphans", *services)
        terminal.echo_command(compose.shown(command))
        try:
            done = run_shown(command, compose.folder, compose.environment(), terminal.live, timeout_seconds)
        except TimeoutError:
            raise WaitTimeoutError(
                f"docker compose up is not through after {timeout_seconds:g} s: it builds or pulls images. What it has is kept.",
                f"{again} --timeout {2 * (timeout_seconds or 0):g} (waits twice as long), or qmdctl pull first",
            ) from None
        return done, None if done.ok else match("compose", _lines(done), facts)

    done, symptom = run("--build" if build else "--no-build")
    if symptom and symptom.name in OFFLINE and has_embed_image:
        terminal.note(f"{symptom.cause} The embed image that is here is used as it is.", "yellow")
        done, symptom = run("--no-build")
    if done.ok:
        return
    if symptom:
        raise MissingError(symptom.cause, symptom.fix)
    lines = _lines(done)
    last = next((line.strip() for line in reversed(lines) if "rror" in line), lines[-1].strip() if lines else f"status {done.returncode}")
    raise QmdError(f"docker compose up failed: {last[:500]}", "its whole output is above; qmdctl doctor looks for what is missing")


def _lines(done: Completed) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.strip()]


def changed(compose: Compose, hashes: Mapping[str, str], environment: Mapping[str, str] | None = None) -> bool:
    """Whether the containers (service → configuration hash) were made from another configuration than .env and the files give now.

    `environment` goes before .env; an empty value there is one, and the compose file's default counts.
    """
    try:
        done = compose.run("config", "--hash", "*", capture=True, echo=False, environment=environment)
    except ProcessError as error:
        said = error.completed.stderr.strip().splitlines()
        raise ConfigurationError(
            f"Compose refuses the configuration: {said[-1] if said else error.message}", "correct .env or the compose file it names"
        ) from None
    now = dict(line.split()[:2] for line in done.stdout.splitlines() if line.strip())
    return any(now.get(service) != value for service, value in hashes.items())


def run_shown(command: list[str], cwd: Path, environment: Mapping[str, str], tty: bool, timeout_seconds: float | None = None) -> Completed:
    """Run with both outputs going to our stderr as they come. The last 64 KiB are in the result's `stderr`.

    `tty`: the program is given a terminal of our own stderr's size, so that it draws its progress as it would by itself. TimeoutError
    after `timeout_seconds`; the program has ended then.
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
    end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    try:
        while True:
            if end is not None and not select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError
            part = _read(reader)
            if not part:
                break
            sys.stderr.buffer.write(part)
            sys.stderr.flush()
            kept = (kept + part)[-KEPT_BYTES:]
        status = child.wait()
    except BaseException:
        with uninterrupted(), contextlib.suppress(subprocess.TimeoutExpired):
            child.terminate()  # Ctrl-C, or too long: Compose ends; containers that it has started go on
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
