"""What of .env and of the effective compose file is kept: everything but secrets, by the rule with which .env is shown."""

from __future__ import annotations

import re
from typing import Any

from qmdctl import env_file
from qmdctl.env_file import EnvFile
from qmdctl.errors import ConfigurationError
from qmdctl.redaction import command_lines

COMMENTED = re.compile(r"^#[ \t]?([A-Za-z_][A-Za-z0-9_]*)=(.*)$")


def secret(key: str, value: str) -> bool:
    """Whether the value may not be kept: its key says so, or it holds a token, a key's option or a URL's user."""
    return command_lines.value(key, value) != value


def env_text(env: EnvFile) -> tuple[str, list[str]]:
    """The file without the values that are secrets, and the keys of these, which stand there as `# KEY=…`."""
    secrets = [key for key, value in env.values.items() if secret(key, value)]
    keys = {env.line_of[key]: key for key in env.values}
    lines = []
    for number, line in enumerate(env.lines, 1):
        key = keys.get(number)
        if key is not None:
            lines.append(f"# {key}=…" if key in secrets else _assigned(line, key, env.values[key]))
        elif commented := COMMENTED.match(line):
            lines.append(f"# {commented[1]}=…" if secret(commented[1], commented[2]) else line)
        else:
            lines.append(command_lines.text(line))
    return "".join(f"{line}\n" for line in lines), secrets


def _assigned(line: str, key: str, value: str) -> str:
    """The line, without the comment that may follow its value and may hold anything."""
    try:
        return f"{key}={env_file.quote(value)}"
    except ConfigurationError:  # a backslash outside quotes is read, and not written
        return command_lines.text(line)


def compose_text(text: str) -> str:
    """The output of `docker compose config` with … for what looks like a secret. yaml.YAMLError where it is none."""
    import yaml

    data = yaml.safe_load(text)
    kept: str = yaml.safe_dump(_clean("", data), sort_keys=False, allow_unicode=True, width=140)
    return kept


def _clean(key: str, node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _clean(str(name), value) for name, value in node.items()}
    if isinstance(node, list):
        if key == "environment":
            return [_assignment(str(one)) for one in node]
        return command_lines.redacted(node) if node and all(isinstance(one, str) for one in node) else [_clean(key, one) for one in node]
    return command_lines.value(key, node) if isinstance(node, str) else node


def _assignment(text: str) -> str:
    name, equals, value = text.partition("=")
    return f"{name}{equals}{command_lines.value(name, value)}"
