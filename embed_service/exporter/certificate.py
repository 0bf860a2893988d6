"""When a certificate ends, read from its PEM text: the standard library shows it of authorities' certificates alone."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

END = "-----END CERTIFICATE-----"
VERSION, UTC_TIME = 0xA0, 0x17  # tags in DER


def not_after(pem: str) -> float:
    """Unix time in seconds at which the first certificate in `pem` ends. ValueError where there is none or it is damaged.

    Certificate → TBSCertificate → [version], serial, algorithm, issuer, validity (RFC 5280, 4.1).
    """
    first, end, _ = pem.partition(END)
    try:
        der = ssl.PEM_cert_to_DER_cert(first[first.index("-----BEGIN") :] + end)
        fields = _elements(_elements(_elements(der)[0][1])[0][1])
        validity = fields[4 if fields[0][0] == VERSION else 3][1]
        kind, text = _elements(validity)[1]
        form = "%y%m%d%H%M%SZ" if kind == UTC_TIME else "%Y%m%d%H%M%SZ"
        return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC).timestamp()
    except (ValueError, IndexError) as error:
        raise ValueError(f"no certificate: {error}") from None


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """The (tag, content) pairs that follow each other in `der`. IndexError or ValueError where it ends early."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, at = int.from_bytes(der[at : at + count], "big"), at + count
        if at + length > len(der):
            raise ValueError("it ends early")
        found.append((tag, der[at : at + length]))
        at += length
    return found
