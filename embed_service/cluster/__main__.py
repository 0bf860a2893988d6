"""`python -m embed_service.cluster --fd N`: between the HTTP process and Ray. Started by the HTTP process, never by hand.

A process of its own, because a Ray driver ends with its cluster: the HTTP process keeps its port and its queue, and starts another.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket

from embed_service.engine.__main__ import die_with_parent
from embed_service.engine.protocol import Header, encode
from embed_service.errors import SettingsError
from embed_service.settings import load_settings
from embed_service.telemetry import logs


def main() -> None:
    parser = argparse.ArgumentParser(prog="embed_service.cluster", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited file descriptor of the socket")
    fd = parser.parse_args().fd
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the HTTP process decides what it means
    die_with_parent()
    settings = load_settings()
    logs.configure(settings)
    sock = socket.socket(fileno=fd)
    try:
        from embed_service.cluster.driver import Driver  # it imports Ray

        asyncio.run(Driver(settings).run(sock.dup()))
    except (SettingsError, ImportError, OSError) as error:
        sock.setblocking(True)
        sock.sendall(encode(failure(error)))
        os._exit(1)
    os._exit(0)


def failure(error: SettingsError | ImportError | OSError) -> Header:
    """What is told to every engine's link, for /health to say."""
    if isinstance(error, ImportError):
        message = f"ENGINES=ray needs Ray, which is not installed here ({error}): use the image's variant with Ray (docs/scale.md)."
    elif isinstance(error, SettingsError):
        message = str(error)
    else:
        message = f"The Ray node of this box cannot be started: {error}. RAY_AUTH_TOKEN_PATH must be readable by the service's user."
    return {"type": "failed", "engine": None, "code": "ray_settings", "message": message, "retryable": True}


if __name__ == "__main__":
    main()
