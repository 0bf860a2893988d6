"""A real registry on loopback: Debian's docker-registry. A context manager."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tests.support.service import free_port, poll

# bcrypt of a random word that nobody kept: whoever asks is refused.
NOBODY = "someone:$2b$05$C/q2dSVYGHG9c3FvBmKOUuzvGgr0TEmxMW1PmS6m0gIRA4OJh1Spa\n"


class Registry:
    """`closed`: it wants a password. `address` is what stands before an image's name.

    `beside`: it listens in the network namespace of this process instead.
    """

    def __init__(self, folder: Path, closed: bool = False, beside: int | None = None) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.folder = folder
        self._enter = [] if beside is None else ["nsenter", "--net", "--target", str(beside)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "htpasswd").write_text(NOBODY)
        auth = f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n" if closed else ""
        (folder / "config.yml").write_text(
            f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '{self.address}'}}\n{auth}"
        )

    def __enter__(self) -> Registry:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Not listening meanwhile; what it holds stays."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    def _start(self) -> None:
        program = shutil.which("docker-registry")
        assert program is not None, "scripts/test_engine.sh install brings it"
        with (self.folder / "log").open("wb") as log:
            command = [*self._enter, program, "serve", str(self.folder / "config.yml")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        poll(self._listens, 20, "the registry", 0.2)

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _listens(self) -> bool:
        program = f"import socket; socket.create_connection(('127.0.0.1', {self.port}), 5)"
        return subprocess.run([*self._enter, sys.executable, "-c", program], capture_output=True, check=False).returncode == 0
