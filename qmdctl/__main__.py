"""`qmdctl`, `python -m qmdctl`: runs the verb; errors are caught here, once."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from typing import Any

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
        except SystemExit as end:
            tell_usage(end)
            raise
    except QmdError as error:
        (call.terminal or Terminal()).error(error)
        if call.verbose:
            raise
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader has gone (`qmdctl logs | head`): end as other programs do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def tell_usage(end: SystemExit) -> None:
    """What typer refused, as the JSON of every other error; its message is on stderr already, and it ends with this status."""
    refused: Any = end.__context__  # typer brings its own copy of click along, so that there is no class to ask for
    if "--json" not in sys.argv or end.code != 2 or not hasattr(refused, "format_message"):
        return
    where = getattr(getattr(refused, "ctx", None), "command_path", "") or "qmdctl"
    error = {"error": refused.format_message(), "fix": f"{where} --help", "exit_code": 2}
    sys.stdout.write(json.dumps(error, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
