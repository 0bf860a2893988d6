"""Text without what has the shape of a secret, whoever's it is. What is replaced becomes `MARK`."""

from __future__ import annotations

import re

from qmdctl.redaction.names import NAME, OPTION

MARK = "[redacted]"

# In quotes (in JSON within JSON these are escaped), a list, or a word; not a mapping, and not a compose file's reference to a variable.
_VALUE = (
    r"""(?:(?P<quote>\\*["'])(?:(?!(?P=quote))(?:\\.|[^\n\\]))*(?:(?P=quote))?|\[(?:\[redacted\]|[^\]\n])*\]"""
    r"""|(?!\{\s*["']?\w+["']?\s*:|\$\{\w+[:?+}-])[^\s"',;&}\]\\]+)"""
)

_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY[A-Z0-9 ]*)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{6,}|tskey-[\w-]{4,}|hskey-[\w-]{4,}|sk-[\w-]{6,}|qmd_[\w-]{32,}|gh[pousr]_[A-Za-z0-9]{10,}|github_pat_\w{10,}|glpat-[\w-]{10,}"
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
_ASSIGNED = re.compile(rf"((?<![\w.-]){NAME}(?:\\*[\"'])?[ \t]{{0,9}}[:=][ \t]{{0,9}})({_VALUE})", re.IGNORECASE)
_OPTION = re.compile(
    rf"((?<![\w-]){OPTION}(?:=|[ \t]+|\\*[\"'],\s*))({_VALUE}(?:[ \t]+(?![-&|;])[^\s\"']+)*)",
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
_NO_SECRET = re.compile(r"""\\*["']?(?:null|None|true|false|\[\]|\[redacted\]|\d+(?:\.\d+)?)?\\*["']?""")
_ALWAYS = re.compile(r"[A-Z0-9_]+=|.*pass(?:word|wd|phrase)", re.DOTALL)


def shapes_hidden(text: str) -> str:
    """`text` without what has the shape of a secret, whoever's it is."""
    text = _PEM.sub(MARK, text)
    text = TOKENS.sub(MARK, text)
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
