"""Finding a secret in a text in whatever form it stands there, by decoding the text rather than by encoding the secret."""

from __future__ import annotations

import base64
import html
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, unquote_plus

BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")
HEXADECIMAL = re.compile(r"(?:[0-9a-fA-F]{2}){4,}")
ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[\"'\\/bfnrt])")


def readings(text: str) -> Iterator[str]:
    """The text as it is, and decoded in each of the ways that programs encode a value in."""
    yield text
    yield unquote(text)
    yield unquote_plus(text)
    yield html.unescape(text)
    once = _unescaped(text)
    yield once
    yield _unescaped(once)
    yield text.replace("$$", "$").replace("''", "'")
    yield text.replace("'\"'\"'", "'")
    yield _unescaped(text).replace("$$", "$")
    for run in BASE64.findall(text):
        run = run.rstrip("=").replace("-", "+").replace("_", "/")
        for start in range(4):
            part = run[start:]
            part = part[:-1] if len(part) % 4 == 1 else part
            yield base64.b64decode(part + "=" * (-len(part) % 4)).decode("utf-8", "replace")
    for run in HEXADECIMAL.findall(text):
        yield bytes.fromhex(run).decode("utf-8", "replace")


def leaks(text: str, secret: str) -> bool:
    """Whether the secret, or a line of it, stands in the text in one of these forms."""
    lines = [line for line in secret.splitlines() if len(line.strip()) > 3] or [secret]
    return any(line.strip() in reading for reading in readings(text) for line in lines)


def contents(archive: Path) -> dict[str, str]:
    """Each file of the archive by its name below the top folder. Every entry is its owner's alone."""
    found = {}
    with tarfile.open(archive) as opened:
        for entry in opened:
            assert entry.mode == 0o600, entry.name
            file = opened.extractfile(entry)
            assert file is not None
            found[entry.name.partition("/")[2]] = file.read().decode()
    return found


def _unescaped(text: str) -> str:
    def decoded(match: re.Match[str]) -> str:
        escape = match[0].replace("\\x", "\\u00").replace("\\'", "'")
        try:
            return str(json.loads(f'"{escape}"'))
        except ValueError:
            return escape

    return ESCAPE.sub(decoded, text)
