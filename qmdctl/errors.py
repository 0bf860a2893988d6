"""The one exception tree of qmdctl. Each has an exit code, a sentence on the cause and, where there is one, the command that mends it.

    QmdError              1   unhealthy: something that should work does not
    ├── ConfigurationError  2   wrong usage, .env or compose file
    ├── MissingError        3   a prerequisite is missing: engine, permission, GPU, disk, port
    ├── WaitTimeoutError    4   it did not become ready in the time given
    └── InterruptedByUser   130 Ctrl-C

`qmdctl.__main__` catches it once, prints it and exits; a traceback is shown with --verbose only.
"""

from __future__ import annotations


class QmdError(Exception):
    """`message`: what is wrong and why, for the user. `fix`: the command or step that mends it, or empty.

    `details`: lines to show below.
    """

    exit_code = 1

    def __init__(self, message: str, fix: str = "", details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.details = details

    def payload(self) -> dict[str, str | int]:
        """The error as `--json` prints it."""
        return {"error": self.message, "fix": self.fix, "exit_code": self.exit_code}


class ConfigurationError(QmdError):
    exit_code = 2


class MissingError(QmdError):
    exit_code = 3


class WaitTimeoutError(QmdError):
    exit_code = 4


class InterruptedByUser(QmdError):
    exit_code = 130
