"""`python -m embed_service.engine --fd N`: the engine on one end of a socket pair. Started by the HTTP process, never by hand."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys


def main() -> None:
    parser = argparse.ArgumentParser(prog="embed_service.engine", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited file descriptor of the socket")
    fd = parser.parse_args().fd
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the HTTP process decides what it means
    die_with_parent()
    prepare_environment()

    from embed_service.engine.process import EngineProcess
    from embed_service.engine.protocol import BlockingConnection

    EngineProcess(BlockingConnection(socket.socket(fileno=fd))).run()


def prepare_environment() -> None:
    """What libraries read when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wait_briefly()


def wait_briefly() -> None:
    """How OpenMP's threads wait for each other, unless the environment says it: a few microseconds awake, then asleep.

    Two threads on two cores, MiniLM in float32: asleep at once, a short query took 21 ms and awake for as long as it takes 12; but where
    another process wanted the same cores, packs took three times as long with threads that stay awake. With this count both were as
    in the better case (benchmarks/README.md). libgomp, which torch brings on Linux, reads it when it is loaded.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "3000"


def die_with_parent() -> None:
    """SIGKILL for this process when its parent dies (Linux). Elsewhere the end of the socket tells it."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    main()
