"""The certificate of a proxy that looks into TLS, where .env names one (CA_FILE): for every HTTP client that starts after this."""

from __future__ import annotations

import contextlib
import os
from collections.abc import MutableMapping
from pathlib import Path

FILE = Path("/run/secrets/ca")  # empty where .env names none
VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def trust(file: Path = FILE, environment: MutableMapping[str, str] = os.environ) -> None:
    """What is set already is left as it is."""
    with contextlib.suppress(OSError):
        if file.stat().st_size:
            for name in VARIABLES:
                environment[name] = environment.get(name) or str(file)
