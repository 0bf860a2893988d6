"""The seed client's index.yml: its `remote:` block set, every other byte as it was.

ruamel.yaml tells where in the text each value stands; the text is changed there alone, so comments, order, quotes and line endings stay.
The result is read again and has to be the old document with the new values, or nothing is written.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from qmdctl.errors import ConfigurationError

FILE = "index.yml"
BOM = "\ufeff"
# Behind the colon may stand a tag, an anchor, or the sign of a text that begins on the next line.
KEY_IN_CLEAR = re.compile(
    r"""(\bapi_key["']?\s*:\s*(?:[!&]\S*\s+)*(?:[|>][^\n]*\n\s*)?)(?![!&|>])(?!["']?\$\{)(?:"(?:\\.|[^"\\])*"|'[^']*'|[^\s,}#]+)"""
)
USER_INFO = re.compile(r"""(\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/"']*@""")
WORDS = ("true", "false", "yes", "no", "on", "off", "null")  # no texts where they stand bare
NULL = "tag:yaml.org,2002:null"

Wanted = Mapping[str, "str | Mapping[str, str]"]


class _Unfit(Exception):
    """The text is written in a way that cannot be changed in place."""


@dataclass(frozen=True)
class Change:
    """`before` and `after` are the file's text; `before` is None where there is no file."""

    path: Path
    before: str | None
    after: str

    @property
    def changed(self) -> bool:
        return self.before != self.after

    def difference(self) -> str:
        """As `diff -u` shows it; an API key that stands in clear is left out."""
        old, new = redacted(self.before or "").splitlines(), redacted(self.after).splitlines()
        return "\n".join(difflib.unified_diff(old, new, str(self.path), f"{self.path} as proposed", lineterm="", n=1))


def index_path(environment: Mapping[str, str] = os.environ) -> Path:
    """QMD_CONFIG_DIR, else XDG_CONFIG_HOME/qmd, else ~/.config/qmd; the file in it."""
    if environment.get("QMD_CONFIG_DIR"):
        return Path(environment["QMD_CONFIG_DIR"]).expanduser() / FILE
    base = environment.get("XDG_CONFIG_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".config") / "qmd" / FILE


def redacted(text: str) -> str:
    return USER_INFO.sub(r"\1…@", KEY_IN_CLEAR.sub(r"\1…", text))


def propose(path: Path, wanted: Wanted) -> Change:
    """The file with `wanted` below `remote:`.

    ConfigurationError where it cannot be read, is no such YAML, or cannot be changed in place.
    """
    try:
        before = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return Change(path, None, "remote:\n" + "".join(_lines(wanted, 2, "\n")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", "see to the file, or add the block by hand: qmdctl client") from None
    return Change(path, before, merge(before, wanted, str(path)))


def remote_of(path: Path) -> dict[str, Any]:
    """The keys below `remote:` that are there now; empty where there are none."""
    try:
        root = _compose(path.read_bytes().decode("utf-8").removeprefix(BOM), str(path))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}", "see to the file, or add the block by hand: qmdctl client") from None
    remote = _pairs(root, str(path)).get("remote") if root is not None else None
    if remote is None or not _is_mapping(remote[1]):
        return {}
    found: dict[str, Any] = {}
    for key, (_, node) in _pairs(remote[1], str(path)).items():
        found[key] = {name: one[1].value for name, one in _pairs(node, str(path)).items()} if _is_mapping(node) else node.value
    return found


def merge(text: str, wanted: Wanted, name: str) -> str:
    """`text` with `wanted` below `remote:`; the same text where all of it is there already."""
    bom, text = (BOM, text.removeprefix(BOM)) if text.startswith(BOM) else ("", text)
    root = _compose(text, name)
    try:
        edits = _edits(text, root, wanted, name)
        result = text
        for start, end, new in sorted(edits, reverse=True):
            result = result[:start] + new + result[end:]
        if edits and _plain(_compose(result, name), name) != _expected(_plain(root, name), wanted):
            raise _Unfit
    except (_Unfit, RecursionError):
        raise ConfigurationError(
            f"{name} is written in a way that cannot be changed without touching other parts of it", "add the block by hand: qmdctl client"
        ) from None
    return bom + result


def write(change: Change, now: datetime) -> Path | None:
    """Write the file whole or not at all, keeping its mode and a link to it. The backup beside it; None where there was no file.

    ConfigurationError where that fails; the file is then as it was.
    """
    target = change.path.resolve()
    try:
        change.path.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        backup, status = None, None
        if change.before is not None:
            if target.read_bytes() != change.before.encode():
                raise ConfigurationError(f"{change.path} was changed meanwhile; nothing was written", "run the command again")
            status = target.stat()
            backup = _backup(change, now, status.st_mode & 0o777)
        handle, new = tempfile.mkstemp(dir=target.parent, prefix=".index-")
        try:
            with os.fdopen(handle, "wb") as out:  # closed before it is moved: Windows moves no open file
                out.write(change.after.encode())
                out.flush()
                os.fsync(out.fileno())
            os.chmod(new, status.st_mode & 0o7777 if status else 0o644)
            if status and hasattr(os, "chown") and (status.st_uid, status.st_gid) != (os.getuid(), os.getgid()):
                with contextlib.suppress(PermissionError):
                    os.chown(new, status.st_uid, status.st_gid)
            os.replace(new, target)
        except BaseException:
            os.unlink(new)
            raise
    except OSError as error:
        raise ConfigurationError(
            f"{change.path} cannot be written: {error.strerror or error}", "see to the folder's owner and space; nothing was changed"
        ) from None
    return backup


def _backup(change: Change, now: datetime, mode: int) -> Path:
    assert change.before is not None
    stamp = f"{change.path}.bak-{now:%Y%m%d-%H%M%S}"
    for number in range(100):
        path = Path(stamp if not number else f"{stamp}-{number}")
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        except FileExistsError:
            continue
        with os.fdopen(handle, "wb") as out:
            out.write(change.before.encode())
        return path
    raise FileExistsError(17, f"{stamp} and 99 like it exist")


def _compose(text: str, name: str) -> Any:
    """The document's root node, None where it is empty. ConfigurationError where the text is no YAML, or the root no mapping."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        root = YAML().compose(text)
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigurationError(f"{name}{where}: this is not YAML that can be read: {what}", "mend it; nothing was written") from None
    if root is not None and not _is_mapping(root):
        raise ConfigurationError(f"{name} holds no mapping of keys", "is it the QMD client's file? Nothing was written")
    return root


def _is_mapping(node: Any) -> bool:
    return str(node.id) == "mapping"


def _pairs(node: Any, name: str) -> dict[str, tuple[Any, Any]]:
    """{key: (its node, its value's node)} in order. ConfigurationError for a key that stands twice."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in node.value:
        text = str(key.value)
        if text in found:
            raise ConfigurationError(f"{name}, line {key.start_mark.line + 1}: {text} stands twice", "remove one; nothing was written")
        found[text] = (key, value)
    return found


def _edits(text: str, root: Any, wanted: Wanted, name: str) -> list[tuple[int, int, str]]:
    """(start, end, what comes there instead)."""
    newline = "\r\n" if "\r\n" in text else "\n"
    pairs = _pairs(root, name) if root is not None else {}
    if "remote" not in pairs:
        column = root.value[0][0].start_mark.column if pairs else 0
        if root is not None and root.flow_style:
            raise _Unfit
        start = len(text) if not (end := re.search(r"^\.\.\.\s*$", text, re.MULTILINE)) else end.start()
        gap = "" if not text[:start] or text[:start].endswith("\n") else newline
        return [(start, start, gap + " " * column + "remote:" + newline + "".join(_lines(wanted, column + 2, newline)))]
    key, node = pairs["remote"]
    if _is_mapping(node):
        return _of_mapping(text, key, node, wanted, newline, name)
    if node.tag == NULL:
        return _of_null(text, key, node, wanted, newline, root.flow_style)
    line = key.start_mark.line + 1
    raise ConfigurationError(f"{name}, line {line}: remote is not a mapping of keys", "make it one; nothing was written")


def _of_mapping(text: str, owner: Any, node: Any, wanted: Wanted, newline: str, name: str) -> list[tuple[int, int, str]]:
    """The edits that put `wanted` into one mapping. What is new stands behind the key before it, as `wanted` has them."""
    if node.start_mark.index < owner.end_mark.index or text[node.start_mark.index] in "&*":
        raise _Unfit  # an alias: the mapping stands elsewhere, and others share it
    pairs = _pairs(node, name)
    edits: list[tuple[int, int, str]] = []
    added: dict[int, list[str]] = {}
    place = None  # of what is new
    for key, value in wanted.items():
        if key in pairs:
            key_node, value_node = pairs[key]
            if isinstance(value, str):
                edits += _of_scalar(text, key_node, value_node, value)
                if node.flow_style:
                    place = value_node.end_mark.index
                elif _is_empty(value_node) or value_node.end_mark.line == key_node.start_mark.line:
                    place = _line_end(text, key_node.end_mark.index)
            elif _is_mapping(value_node):
                edits += _of_mapping(text, key_node, value_node, value, newline, name)
            elif value_node.tag == NULL:
                edits += _of_null(text, key_node, value_node, value, newline, node.flow_style)
            else:
                line = key_node.start_mark.line + 1
                raise ConfigurationError(f"{name}, line {line}: {key} is not a mapping of keys", "make it one; nothing was written")
            continue
        if node.flow_style:
            at = place if place is not None else node.start_mark.index + 1
            added.setdefault(at, []).append(_flow(key, value))
        else:
            column = node.value[0][0].start_mark.column
            at = place if place is not None else node.value[0][0].start_mark.index - column
            added.setdefault(at, []).append("".join(_lines({key: value}, column, newline)))
    for at, texts in added.items():
        if not node.flow_style:
            new = _fresh(text, at, newline) + "".join(texts)
        elif at == node.start_mark.index + 1:
            new = ", ".join(texts) + (", " if node.value else "")
        else:
            new = ", " + ", ".join(texts)
        edits.append((at, at, new))
    return edits


def _of_null(text: str, key: Any, node: Any, wanted: Wanted, newline: str, flow: bool) -> list[tuple[int, int, str]]:
    """The edits that put a mapping where nothing, `~` or `null` stands."""
    start = text.index(":", key.end_mark.index) + 1
    end = node.end_mark.index if node.value else start
    if text[start:end].strip() != node.value:
        raise _Unfit  # an alias, an anchor, a comment in between
    if flow:
        return [(start, end, f" {{{', '.join(_flow(*pair) for pair in wanted.items())}}}")]
    at = _line_end(text, end)
    lines = _fresh(text, at, newline) + "".join(_lines(wanted, key.start_mark.column + 2, newline))
    return [(start, end, ""), (at, at, lines)] if end < at else [(start, end, lines)]


def _of_scalar(text: str, key: Any, node: Any, value: str) -> list[tuple[int, int, str]]:
    """The edit that gives a key its new value in the quotes that the old one had."""
    if str(node.id) != "scalar" or node.style in ("|", ">"):
        raise _Unfit
    if node.value == value and node.tag.endswith(":str"):
        return []
    start, end = node.start_mark.index, node.end_mark.index
    if _is_empty(node):
        start = end = text.index(":", key.end_mark.index) + 1
    if start < key.end_mark.index or text[start : start + 1] in ("&", "*"):
        raise _Unfit
    single = "'" + value.replace("'", "''") + "'"
    quoted = single if node.style == "'" else _double(value) if node.style == '"' else quoted_yaml(value)
    return [(start, end, (" " if start == end else "") + quoted)]


def _lines(wanted: Wanted, column: int, newline: str) -> list[str]:
    lines = []
    for key, value in wanted.items():
        if isinstance(value, str):
            lines.append(f"{' ' * column}{key}: {quoted_yaml(value)}{newline}")
        else:
            lines += [f"{' ' * column}{key}:{newline}", *_lines(value, column + 2, newline)]
    return lines


def _flow(key: str, value: str | Mapping[str, str]) -> str:
    return f"{key}: {_double(value)}" if isinstance(value, str) else f"{key}: {{{', '.join(_flow(*pair) for pair in value.items())}}}"


def quoted_yaml(value: str) -> str:
    """Plain where that is safe in a block: addresses and model names are, a reference to the environment is quoted."""
    plain = re.fullmatch(r"[A-Za-z][\w./:@-]*[\w/]", value) and value.lower() not in WORDS
    return value if plain else _double(value)


def _double(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # YAML knows every escape of JSON's


def _is_empty(node: Any) -> bool:
    """Whether nothing stands there; ruamel.yaml then puts its place somewhere behind."""
    return bool(node.start_mark.index == node.end_mark.index)


def _line_end(text: str, index: int) -> int:
    """Where the line after the one of `index` begins; the text's end where there is none."""
    found = text.find("\n", index)
    return len(text) if found < 0 else found + 1


def _fresh(text: str, at: int, newline: str) -> str:
    """A line end where what is inserted at `at` would continue a line."""
    return newline if at and text[at - 1] != "\n" else ""


def _plain(node: Any, name: str) -> Any:
    """A node as values that compare: scalars with their tags, mappings without their order."""
    if node is None:
        return {}
    if _is_mapping(node):
        return {(key.tag, str(key.value)): _plain(value, name) for key, value in _pairs(node, name).values()}
    if str(node.id) == "sequence":
        return [_plain(one, name) for one in node.value]
    return (node.tag, node.value)


def _expected(plain: Any, wanted: Wanted) -> Any:
    """`plain` with `wanted` below `remote`."""
    text = "tag:yaml.org,2002:str"

    def merged(old: Any, new: Wanted) -> dict[Any, Any]:
        result = dict(old) if isinstance(old, dict) else {}
        for key, value in new.items():
            result[(text, key)] = (text, value) if isinstance(value, str) else merged(result.get((text, key)), value)
        return result

    return {**plain, (text, "remote"): merged(plain.get((text, "remote")), wanted)}
