"""Text without secrets: those that are known, in every form in which programs write them, and whatever has the shape of one.

Known secrets go first, so that a shape never takes a piece of one and leaves the rest. The names of keys, hosts and models stay, and so do
addresses; e-mail addresses and the user's home folder do not.
"""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, quote_plus

from qmdctl.redaction.shapes import MARK, shapes_hidden

WORD = 8  # characters from which a known secret is taken out wherever it stands; a shorter one only as a word of its own
SHORTEST = 3
# Values that keys for secrets often have and that are none; taken out of every text they would take its sense along.
COMMON = frozenset({"true", "false", "none", "null", "auto", "any", "yes", "off", "0", "1"})

_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{6,4000}={0,2}")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")


class Redactor:
    """Takes `secrets` and whatever looks like one out of texts. The lines of a secret are secrets too."""

    def __init__(self, secrets: Iterable[str] = (), home: Path | None = None) -> None:
        self.secrets = sorted({part for secret in secrets for part in _parts(secret)}, key=lambda part: (-len(part), part))
        forms = {form for secret in self.secrets if len(secret) >= WORD for form in forms_of(secret)}
        self._plain = sorted(forms, key=lambda form: (-len(form), form))
        words = {form for secret in self.secrets if len(secret) < WORD for form in short_forms(secret)}
        spaced = [r"\s+".join(map(re.escape, secret.split())) for secret in self.secrets if len(secret) >= WORD and len(secret.split()) > 1]
        bounded = [_as_word(word) for word in sorted(words, key=lambda form: (-len(form), form))]
        self._patterns = [re.compile("|".join(group)) for group in (spaced, bounded) if group]
        self._words = re.compile("|".join(bounded)) if bounded else None
        self._home = str(home) if home and home.is_absolute() and len(home.parts) > 2 else ""

    def text(self, text: str) -> str:
        """`text` with `MARK` for every secret. Colours and other control sequences go as well: they could stand within one."""
        text = _ANSI.sub("", text)
        for form in self._plain:
            text = text.replace(form, MARK)
        for pattern in self._patterns:
            text = pattern.sub(MARK, text)
        if self._words:
            text = _BASE64.sub(self._hide_encoded, text)
        return self._home_hidden(shapes_hidden(text))

    def content(self, raw: bytes) -> bytes:
        """The same for what a program or a file gave; bytes that are not UTF-8 become U+FFFD."""
        return self.text(raw.decode("utf-8", "replace")).encode()

    def _hide_encoded(self, match: re.Match[str]) -> str:
        """A Basic header's user and password, say, of which the password is too short to be known by a piece of its base64."""
        run = match[0].rstrip("=").replace("-", "+").replace("_", "/")
        try:
            decoded = base64.b64decode(run + "=" * (-len(run) % 4)).decode()
        except ValueError:
            return match[0]
        return MARK if self._words and self._words.search(decoded) else match[0]

    def _home_hidden(self, text: str) -> str:
        return re.sub(rf"{re.escape(self._home)}(?![\w-])", "~", text) if self._home else text


def forms_of(secret: str) -> set[str]:
    """A secret as URLs, JSON (also within JSON, and as Go writes it), YAML, shells, HTML, base64 and hexadecimal have it; its digest."""
    plain = {secret, secret.replace("$", "$$"), secret.replace("'", "''"), shlex.quote(secret).strip("'"), repr(secret)[1:-1]}
    escaped = {form for one in plain for form in _escaped(one)}
    twice = {form for one in escaped for form in _escaped(one)}
    raw = secret.encode("utf-8", "surrogatepass")
    urls = {quote(raw, safe=""), quote(raw), quote_plus(raw), quote(raw, safe="~()*!.'")}
    urls |= {re.sub(r"%[0-9A-F]{2}", lambda match: match[0].lower(), url) for url in urls}
    encoded = {raw.hex(), raw.hex().upper(), sha256(raw).hexdigest(), html.escape(secret), html.escape(secret, quote=False)}
    return {form for form in plain | escaped | twice | urls | encoded | set(_base64(raw)) if len(form) >= WORD}


def short_forms(secret: str) -> set[str]:
    """Those of a secret too short to be sought within words."""
    raw = secret.encode("utf-8", "surrogatepass")
    encoded = {quote(raw, safe=""), base64.b64encode(raw).decode(), base64.b64encode(raw).decode().rstrip("="), sha256(raw).hexdigest()}
    return {secret, secret.replace("$", "$$"), *_escaped(secret), *encoded}


def _escaped(text: str) -> Iterator[str]:
    for ascii_only in (False, True):
        form = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield form
        # Go's encoder, which is Docker's and Compose's, escapes these as well.
        yield form.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
        yield form.replace("/", "\\/")


def _base64(raw: bytes) -> Iterator[str]:
    """In base64 alone and within a longer text, as in a Basic header: there it may begin at each of three places."""
    for shift in range(3):
        padded = bytes(shift) + raw
        for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
            text = encode(padded).decode()
            begin, end = (0, 2, 3)[shift], 4 * (len(padded) // 3) + (0, 1, 2)[len(padded) % 3]
            yield text[begin:end]
            if not shift:
                yield text
                yield text.rstrip("=")


def _parts(secret: str) -> Iterator[str]:
    """The whole and each of its lines, without space around; not what is too short or too common."""
    for part in (secret, *secret.splitlines()):
        part = part.strip()
        if len(part) >= SHORTEST and part.lower() not in COMMON and part != MARK:
            yield part


def _as_word(text: str) -> str:
    before = r"(?<![A-Za-z0-9])" if text[0].isalnum() else ""
    after = r"(?![A-Za-z0-9])" if text[-1].isalnum() else ""
    return f"{before}{re.escape(text)}{after}"
