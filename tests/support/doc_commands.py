"""The commands of a page of the docs, in their order, and which of them no test can run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

NOT_RUN = re.compile(r"\s+# not run by the tests(?: here)?[:,;] (.+)$")


@dataclass(frozen=True)
class Command:
    """One line of a ```sh block. `why_not`: what the page itself says where no test runs it, else empty."""

    section: str
    text: str
    why_not: str = ""


def read_commands(page: Path) -> list[Command]:
    """Every command of the page, continued lines joined. Of the comments only `# not run by the tests…` counts."""
    found: list[Command] = []
    for heading, body in re.findall(r"^##? ([^\n]+)\n(.*?)(?=^##? \w|\Z)", page.read_text(), re.MULTILINE | re.DOTALL):
        for block in re.findall(r"^```sh\n(.*?)^```", body, re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                marked = NOT_RUN.search(line)
                text = re.sub(r"\s+# .*$", "", line).strip()
                if text:
                    found.append(Command(heading, text, marked[1] if marked else ""))
    return found
