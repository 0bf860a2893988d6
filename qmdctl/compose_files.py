"""Reading the compose files: which variables they take, with which defaults, and which services they name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qmdctl.errors import ConfigurationError
from qmdctl.project import COMPOSE_FILE

REFERENCE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-+?])|\}))")


def compose_files(folder: Path, values: Mapping[str, str]) -> list[Path]:
    """The files that COMPOSE_FILE names, else compose.yaml with a compose.override.yaml beside it, as Compose takes them."""
    named = values.get("COMPOSE_FILE")
    if not named:
        override = folder / "compose.override.yaml"
        return [folder / COMPOSE_FILE, *([override] if override.is_file() else [])]
    files = [folder / part for part in named.split(values.get("COMPOSE_PATH_SEPARATOR") or os.pathsep)]
    for file in files:
        if not file.is_file():
            raise ConfigurationError(f"COMPOSE_FILE names {file.name}, which is not in {file.parent}", "correct COMPOSE_FILE in .env")
    return files


def defaults(files: list[Path]) -> dict[str, str]:
    """Every variable that the compose files take, in their order; a later file's default wins, as its value does in Compose."""
    found: dict[str, str] = {}
    for file in files:
        for text in _strings(load(file)):
            for name, default in references(text):
                found[name] = default or found.get(name, "")
    return found


def fixed(files: list[Path]) -> dict[str, tuple[str, str]]:
    """Variables of a container that a later file sets whatever .env says, as compose.cpu.yaml does with DEVICE: {name: (value, file)}."""
    taken: set[str] = set()
    found: dict[str, tuple[str, str]] = {}
    for file in files:
        for service in (load(file).get("services") or {}).values():
            environment = (service or {}).get("environment") or {}
            for name, value in environment.items() if isinstance(environment, dict) else ():
                if name in taken and not references(str(value)):
                    found[name] = (str(value), file.name)
        taken |= {name for text in _strings(load(file)) for name, _ in references(text)}
    return found


def service_profiles(files: list[Path]) -> dict[str, list[str]]:
    """Each service, in the files' order, with the profiles that start it (none: always)."""
    merged: dict[str, list[str]] = {}
    for document in map(load, files):
        for service, fields in (document.get("services") or {}).items():
            merged[service] = (fields or {}).get("profiles", merged.get(service)) or []
    return merged


def volume_names(files: list[Path]) -> list[str]:
    """The volumes that the files declare and Compose names after the project."""
    declared: dict[str, dict[str, Any]] = {}
    for document in map(load, files):
        for name, fields in (document.get("volumes") or {}).items():
            declared.setdefault(name, {}).update(fields or {})
    return [name for name, fields in declared.items() if not fields.get("external") and not fields.get("name")]


def references(text: str) -> list[tuple[str, str]]:
    """The (variable, default) pairs in a string of a compose file, nested ones after; a default may hold references itself."""
    found: list[tuple[str, str]] = []
    for match in REFERENCE.finditer(text):
        name, operator = match.groups()
        if not name:
            continue
        operand = text[match.end() : _closing(text, match.end())] if operator else ""
        found.append((name, operand if operator in ("-", ":-") else ""))
    return found


def interpolate(text: str, lookup: Callable[[str], str]) -> str:
    """`text` with its references replaced as Compose does; `lookup` gives a variable's value, empty for one that is unset."""
    match = REFERENCE.search(text)
    if not match:
        return text
    name, operator = match.groups()
    end = match.end()
    operand = ""
    if operator:
        closing = _closing(text, end)
        operand, end = text[end:closing], closing + 1
    if not name:
        value = "$"
    elif operator in ("+", ":+"):
        value = interpolate(operand, lookup) if lookup(name) else ""
    else:
        value = lookup(name) or (interpolate(operand, lookup) if operator in ("-", ":-") else "")
    return text[: match.start()] + value + interpolate(text[end:], lookup)


def _closing(text: str, start: int) -> int:
    """Index of the brace that closes the reference whose operand begins at `start`."""
    depth = 1
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return len(text)


def key_comments(path: Path) -> dict[str, str]:
    """For each key of .env.example, commented out or not, the comment lines directly above it as one text."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    result: dict[str, str] = {}
    comment: list[str] = []
    for line in lines:
        match = re.match(r"^(?:# ?)?([A-Z][A-Z0-9_]*)=", line)
        if match:
            result[match.group(1)] = " ".join(comment)
            comment = []
        elif line.startswith("#"):
            comment.append(line.lstrip("# "))
        else:
            comment = []
    return result


def load(path: Path) -> dict[str, Any]:
    """One compose file as data, not to be changed. ConfigurationError with the line for bad YAML."""
    try:
        about = path.stat()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", f"git checkout {path.name}") from None
    return _load(path, about.st_mtime_ns, about.st_size)


@cache
def _load(path: Path, modified: int, size: int) -> dict[str, Any]:
    """Read once for each state of the file: parsing is what a short command would spend its time on."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    def tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None

    Loader.add_multi_constructor("!", tagged)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigurationError(
            f"{path.name}{where}: {error.problem or 'bad YAML'}", f"correct it, or: git checkout {path.name}"
        ) from None
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", f"git checkout {path.name}") from None
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path.name} is not a compose file", f"git checkout {path.name}")
    return data


def _strings(node: Any) -> Iterator[str]:
    """Every string in the data, keys left out."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
