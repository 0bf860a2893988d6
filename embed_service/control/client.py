"""`embed-service control pause | resume | status | switch`: one command to the running service, its lines on stdout."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
from argparse import Namespace
from typing import Any

from embed_service.control.wire import ControlError, encode, parse
from embed_service.settings import Settings

__all__ = ["main"]

FAILED, UNAVAILABLE, INTERRUPTED = 1, 3, 130


def main(arguments: Namespace, settings: Settings) -> int:
    """The exit status: 0 done, 1 not done, 2 unusable arguments, 3 when the service cannot be reached, 130 when interrupted.

    A pause or a switch that is interrupted is undone; a resume goes on.
    """
    options = {name: getattr(arguments, name) for name in ("embed_model", "embed_revision", "rerank_model", "rerank_revision")}
    if arguments.action != "switch" and any(value is not None for value in options.values()):
        return _fail("Models and revisions belong to `control switch`.", "bad_command", 2)
    if arguments.action == "switch" and all(value is None for value in options.values()):
        return _fail("Say what to change: --embed-model, --embed-revision, --rerank-model or --rerank-revision.", "bad_command", 2)
    try:
        given = {"command": arguments.action, "timeout_seconds": arguments.timeout, **options}
        command = parse(encode({name: value for name, value in given.items() if value is not None}))
    except ControlError as error:
        return _fail(error.message, error.code, 2)
    if settings.control_socket is None:
        return _fail(
            "CONTROL_SOCKET is not set, so the service has no control socket. Set it and restart the service.", "unavailable", UNAVAILABLE
        )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # as the first process of a container it would otherwise ignore them
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(settings.control_socket)
            except OSError as error:
                why = f"The service does not listen on CONTROL_SOCKET={settings.control_socket} ({error.strerror})."
                return _fail(f"{why} Is it running, and is this its user? Its log says when it has no socket.", "unavailable", UNAVAILABLE)
            connection.sendall(encode(command.model_dump(exclude_none=True)))
            return _copy(connection, attended=arguments.attended)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _fail(f"The service ended the connection: {error.strerror}.", "lost", FAILED)


def _copy(connection: socket.socket, *, attended: bool) -> int:
    """Lines from the service to stdout until the last. The exit status that the last one means."""
    last: dict[str, Any] = {}
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        if attended:
            selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not connection:
                    if not os.read(sys.stdin.fileno(), 4096):
                        return INTERRUPTED
                    continue
                part = connection.recv(65536)
                if not part:
                    if "done" in last:
                        return 0
                    if "error" in last:
                        return FAILED
                    return _fail("The service ended before it was done.", "lost", FAILED)
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    last = json.loads(line)
                    sys.stdout.write(line.decode() + "\n")
                sys.stdout.flush()


def _fail(message: str, code: str, status: int) -> int:
    sys.stdout.write(json.dumps({"error": message, "code": code}, ensure_ascii=False) + "\n")
    return status
