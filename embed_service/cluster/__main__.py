"""`python -m embed_service.cluster --fd N`: between the HTTP process and Ray. Started by the HTTP process, never by hand.

A process of its own, because a Ray driver ends with its cluster: the HTTP process keeps its port and its queue, and starts another.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket

from embed_service.cluster.driver import Driver
from embed_service.engine.__main__ import die_with_parent
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
    asyncio.run(Driver(settings).run(socket.socket(fileno=fd)))
    os._exit(0)


if __name__ == "__main__":
    main()
