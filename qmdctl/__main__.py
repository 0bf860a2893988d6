"""`qmdctl`, `python -m qmdctl`: runs the verb; errors are caught here, once."""

from __future__ import annotations

import io
import os
import signal
import sys

from qmdctl.cli import app
from qmdctl.commands.common import Invocation
from qmdctl.errors import InterruptedByUser, QmdError
from qmdctl.terminal import Terminal


def main() -> None:
    """Exit status as in `qmdctl --help`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks (Windows' cp1252 has no ✓) becomes a question mark
            stream.reconfigure(errors="replace")
    call = Invocation()
    try:
        try:
            app(prog_name="qmdctl", obj=call)
        except KeyboardInterrupt:
            raise InterruptedByUser("Interrupted.") from None
    except QmdError as error:
        (call.terminal or Terminal()).error(error)
        if call.verbose:
            raise
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader has gone (`qmdctl logs | head`): end as other programs do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


if __name__ == "__main__":
    main()
