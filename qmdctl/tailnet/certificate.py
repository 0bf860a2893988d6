"""When a certificate ends and for which names it holds, read from its PEM text without a library for it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

SUBJECT_ALT_NAME = bytes.fromhex("0603551d11")  # the identifier 2.5.29.17 in DER (RFC 5280, 4.2.1.6)
UTC_TIME, CONTEXT_0, CONTEXT_3, OCTET_STRING, DNS_NAME = 0x17, 0xA0, 0xA3, 0x04, 0x82


@dataclass(frozen=True)
class Certificate:
    """`not_after` is the first moment at which it no longer holds."""

    names: tuple[str, ...]
    not_after: datetime

    @property
    def days_left(self) -> float:
        return (self.not_after - datetime.now(UTC)).total_seconds() / 86400


def read_certificate(pem: str) -> Certificate | None:
    """The first certificate in `pem` (the node's own; its chain follows). None where there is none or it is damaged."""
    end = "-----END CERTIFICATE-----"
    start = pem.find("-----BEGIN CERTIFICATE-----")
    if start < 0 or end not in pem[start:]:
        return None
    try:
        der = ssl.PEM_cert_to_DER_cert(pem[start : pem.index(end, start) + len(end)])
        return _parse(der)
    except (ValueError, IndexError):
        return None


def _parse(der: bytes) -> Certificate:
    """Certificate → TBSCertificate → [version], serial, algorithm, issuer, validity, subject, key, …, extensions (RFC 5280, 4.1)."""
    (_, whole), *_ = _elements(der)
    (_, signed), *_ = _elements(whole)
    fields = _elements(signed)
    if fields[0][0] == CONTEXT_0:
        fields = fields[1:]
    (kind, text) = _elements(fields[3][1])[1]
    form = "%y%m%d%H%M%SZ" if kind == UTC_TIME else "%Y%m%d%H%M%SZ"
    names: tuple[str, ...] = ()
    for tag, content in fields[6:]:
        if tag == CONTEXT_3:
            names = _names(_elements(content)[0][1])
    return Certificate(names, datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC))


def _names(extensions: bytes) -> tuple[str, ...]:
    for _, extension in _elements(extensions):
        if extension.startswith(SUBJECT_ALT_NAME):
            value = next((content for tag, content in _elements(extension) if tag == OCTET_STRING), b"")
            return tuple(content.decode("ascii") for tag, content in _elements(_elements(value)[0][1]) if tag == DNS_NAME)
    return ()


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """The (tag, content) pairs that follow each other in `der`. IndexError or ValueError where it ends early."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, at = int.from_bytes(der[at : at + count], "big"), at + count
        if at + length > len(der):
            raise ValueError("the certificate ends early")
        found.append((tag, der[at : at + length]))
        at += length
    return found
