"""Text without secrets: those that are known, in every form in which programs write them, and whatever has the shape of one.

Known secrets go first, so that a shape never takes a piece of one and leaves the rest. What is replaced becomes `MARK`. The names of keys,
hosts and models stay, and so do addresses; e-mail addresses and the user's home folder do not.
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

MARK = "[redacted]"
WORD = 8  # characters from which a known secret is taken out wherever it stands; a shorter one only as a word of its own
SHORTEST = 3
# Values that keys for secrets often have and that are none; taken out of every text they would take its sense along.
COMMON = frozenset({"true", "false", "none", "null", "auto", "any", "yes", "off", "0", "1"})

# A key whose value is a secret: HF_TOKEN, --api-key, "apiKey", private_key; not MAX_BATCH_TOKENS, KeyExpiry or API_KEYS_FILE.
# Repetitions are bounded, here and below: a line of a megabyte must not take a quadratic time.
_NAME = (
    r"[\w.-]{0,80}(?:token|secret|password|passwd|passphrase|credentials?|cookie|authorization|authurl|bearer|webhook(?:[_-]?url)?"
    r"|(?:[_-]|\bpg)pass|(?:[_-]|\b)(?:pwd|dsn)|[_-]auth|(?:api|auth|access|private|secret|[_-])[_-]?keys?(?:[_-]id)?)"
    r"(?:[_-]?\d{1,3}|[_-](?:old|new|backup|previous))?"
)
SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
# In quotes (in JSON within JSON these are escaped), a list, or a word; not a mapping, and not a compose file's reference to a variable.
_VALUE = (
    r"""(?:(?P<quote>\\*["'])(?:(?!(?P=quote))(?:\\.|[^\n\\]))*(?:(?P=quote))?|\[(?:\[redacted\]|[^\]\n])*\]"""
    r"""|(?!\{\s*["']?\w+["']?\s*:|\$\{\w+[:?+}-])[^\s"',;&}\]\\]+)"""
)

_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY[A-Z0-9 ]*)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{6,}|tskey-[\w-]{4,}|sk-[\w-]{6,}|qmd_[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{10,}|github_pat_\w{10,}|glpat-[\w-]{10,}"
    r"|glsa_\w{10,}|[rs]k_(?:live|test)_\w{8,}|nvapi-[\w-]{10,}|dckr_pat_[\w-]{10,}|npm_[A-Za-z0-9]{20,}|pypi-[\w-]{20,}|xox[abeprs]-[\w-]{8,}|AIza[\w-]{30,}"
    r"|(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}|eyJ[\w-]{5,4000}\.[\w-]{5,8000}(?:\.[\w-]*)?|privkey:[0-9a-f]{16,})"
)
# Up to the last @ of the word: a password may hold a slash or an @ of its own.
_USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}:\\?/\\?/)[^\s'\"<>`]{0,400}@", re.IGNORECASE)
_PARAMETER = re.compile(
    r"((?:[?&;]|\\u0026|%26|%3f)(?:[\w.-]{0,60}(?:token|keys?|secret|password|passwd|pwd|sig|signature|credential|auth|code|session)"
    r"|policy|key-pair-id)(?:=|%3d))(?:(?!\\u0026|%26)[^&\s\"'#<>])+",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"((?:proxy-authorization|authorization|set-cookie|cookie|x-[\w-]{0,40}(?:key|token|auth|secret)|api-key)\\*[\"']?\s*[:=,]\s*+\[?+\s*+\\*+[\"']?+)"
    r"(?!\[?redacted)[^\r\n\"'\\]+",
    re.IGNORECASE,
)
_BEARER = re.compile(
    r"\b(bearer[\s:]{1,4}(?=[\w.~+/=-]*\d|[\w.~+/=-]{12})|basic\s{1,4}(?=[A-Za-z0-9+/_-]{8,}={0,2}(?:[\s\"',;\\]|$)))[\w.~+/=-]{3,}",
    re.IGNORECASE,
)
# A dictionary of Python's, JSON, YAML, a command's or a log line's NAME=value.
_ASSIGNED = re.compile(rf"((?<![\w.-]){_NAME}(?:\\*[\"'])?[ \t]{{0,9}}[:=][ \t]{{0,9}})({_VALUE})", re.IGNORECASE)
_OPTION = re.compile(
    rf"((?<![\w-])--(?:[\w-]{{0,60}}[-_])?(?:key|token|secret|password)(?:=|[ \t]+|\\*[\"'],\s*))({_VALUE}(?:[ \t]+(?![-&|;])[^\s\"']+)*)",
    re.IGNORECASE,
)
_LOGIN_LINK = re.compile(r"(https?:\\?/\\?/[\w.:-]+\\?/(?:a|register|auth|login)\\?/)[\w.~%+=:-]{6,}")
# Whoever has such an address can write to its owner.
_WEBHOOK = re.compile(
    r"(https?:\\?/\\?/(?:hooks\.slack\.com\\?/services|(?:\w+\.)?discord(?:app)?\.com\\?/api\\?/webhooks|ntfy\.sh)\\?/"
    r"|https?:\\?/\\?/api\.telegram\.org\\?/bot)[\w.:/\\-]{3,400}",
    re.IGNORECASE,
)
_USER_OPTION = re.compile(r"((?<![\w-])(?:-u|--user|--proxy-user)[ \t=]+[\"']?[^\s:\"']{1,80}:)[^\s\"']+")
_BLOCKS = re.compile(r"[\u2580-\u259f][\u2580-\u259f\u00a0 ]{8,}(?P<end>(?=[\r\n\\]|\Z))?")
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,}\b")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{6,4000}={0,2}")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_NO_SECRET = re.compile(r"""\\*["']?(?:null|None|true|false|\[\]|\[redacted\]|\d+(?:\.\d+)?)?\\*["']?""")
_ALWAYS = re.compile(r"[A-Z0-9_]+=|.*pass(?:word|wd|phrase)", re.DOTALL)


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


def shapes_hidden(text: str) -> str:
    """`text` without what has the shape of a secret, whoever's it is."""
    text = _PEM.sub(MARK, text)
    text = _TOKENS.sub(MARK, text)
    text = _LOGIN_LINK.sub(rf"\1{MARK}", text)
    text = _WEBHOOK.sub(rf"\1{MARK}", text)
    text = _USER_OPTION.sub(rf"\1{MARK}", text)
    text = _USERINFO.sub(rf"\1{MARK}@", text)
    text = _PARAMETER.sub(rf"\1{MARK}", text)
    text = _HEADER.sub(rf"\1{MARK}", text)
    text = _BEARER.sub(rf"\1{MARK}", text)
    text = _OPTION.sub(_hide_option, text)
    text = _ASSIGNED.sub(_hide_value, text)
    text = _BLOCKS.sub(_hide_qr_code, text)
    return _MAIL.sub("[e-mail]", text)


def secret_name(name: str) -> bool:
    """Whether what has this name (a variable, an option, a field) is a secret itself, not the place of one."""
    return SECRET_NAME.fullmatch(name.lstrip("-")) is not None


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


def _hide_value(match: re.Match[str]) -> str:
    """A number or a word of JSON's is no secret in a field that is counted or absent; under NAME= or password it is."""
    begin, value = match[1], match[2]
    if _NO_SECRET.fullmatch(value) and not _ALWAYS.match(begin):
        return match[0]
    quoted = match["quote"] or ""
    return f"{begin}{quoted}{MARK}{quoted}"


def _hide_option(match: re.Match[str]) -> str:
    """In the quotes that it had: in a JSON list the option's value is an item of its own."""
    quoted = match["quote"] or ""
    return f"{match[1]}{quoted}{MARK}{quoted}"


def _hide_qr_code(match: re.Match[str]) -> str:
    """A row of a login link's QR code, as a sidecar's log has it. A progress bar is of whole blocks, and a number follows it."""
    halves = sum(match[0].count(half) for half in "\u2580\u2584")
    return MARK if halves >= 2 or match["end"] is not None else match[0]
