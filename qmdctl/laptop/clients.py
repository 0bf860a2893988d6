"""clients.yaml: each client's configuration, filled in with the addresses and the models."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qmdctl.errors import ConfigurationError
from qmdctl.laptop.index_yml import quoted_yaml
from qmdctl.laptop.models import Models
from qmdctl.laptop.names import Names

PLACEHOLDER = re.compile(r"@(\w+)@")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Client:
    """A row of the table."""

    name: str
    title: str
    format: str  # yaml or sh
    template: str
    one_url: str = ""
    key: str = ""
    only_one_url: bool = False
    notes: tuple[str, ...] = ()

    def render(self, names: Names, models: Models, variable: str = "") -> str:
        """Its configuration, ending in a line feed. `variable` is the environment variable that holds the key; empty: no key."""
        template = self.one_url if self.one_url and not names.generate else self.template
        quoted = quoted_yaml if self.format == "yaml" else shlex.quote
        values = {
            "embed": names.embed,
            "generate": names.generation,
            "embed_model": models.embed,
            "rerank_model": models.rerank,
            "generate_model": models.generate,
            "key": f'"${variable}"' if variable else "any",
            "variable": variable,
        }
        plain = ("key", "variable")  # the shell's and the client's own forms
        return PLACEHOLDER.sub(
            lambda found: values[found[1]] if found[1] in plain else quoted(values[found[1]]), template + (self.key if variable else "")
        )


@cache
def _table() -> dict[str, Any]:
    import yaml

    table: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "clients.yaml").read_text("utf-8"))
    return table


def load_clients() -> dict[str, Client]:
    return {name: Client(name=name, **{**row, "notes": tuple(row.get("notes", ()))}) for name, row in _table()["clients"].items()}


def default_models() -> Models:
    return Models(**_table()["models"])


def find_client(name: str) -> Client:
    """Raises ConfigurationError, which lists the names."""
    clients = load_clients()
    if name not in clients:
        raise ConfigurationError(f"--for: there is no client {name!r}", f"--for takes one of {', '.join(clients)}")
    return clients[name]


def check_variable(name: str) -> str:
    """ConfigurationError for what is no name of an environment variable: a key itself, say, which is not repeated."""
    if not VARIABLE_NAME.fullmatch(name):
        raise ConfigurationError(
            "--key-env takes the name of an environment variable, not a key", "--key-env QMD_KEY; and in the shell: export QMD_KEY=…"
        )
    return name
