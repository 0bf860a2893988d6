"""The link that logs a sidecar in, with its QR code for a telephone."""

from __future__ import annotations

import io


def login_text(service: str, link: str) -> str:
    """A sentence, the link on a line of its own, and the QR code in half blocks."""
    import segno

    drawn = io.StringIO()
    segno.make(link, error="l", micro=False).terminal(drawn, border=2, compact=True)
    return f"{service} wants to join the tailnet. Open this link and log in as the tailnet's owner:\n\n  {link}\n\n{drawn.getvalue()}"
