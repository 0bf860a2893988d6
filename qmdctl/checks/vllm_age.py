"""How old the vLLM image is: a server that is not updated keeps its known holes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding

MONTHS = 18


def check(context: Context, today: datetime | None = None) -> Iterator[Finding]:
    if "vllm" not in context.services:
        raise Unavailable("vLLM does not run here")
    image = context.image("vllm")
    made = made_in(context, image)
    if made is None:
        raise Unavailable(f"the age of {image} is not known before it is here")
    today = today or datetime.now(UTC)
    months = (today.year - made[0]) * 12 + today.month - made[1]
    if months > MONTHS:
        why = "vLLM has had security fixes since"
        yield Finding(
            "vllm_age", "warning", f"{image} is {months} months old", why, "set VLLM_IMAGE to a later tag in .env, then qmdctl up"
        )
    else:
        yield Finding("vllm_age", "ok", f"{image} is {max(months, 0)} months old")


def made_in(context: Context, image: str) -> tuple[int, int] | None:
    """(year, month) by NVIDIA's tag, else by the image itself."""
    tag = re.search(r":(\d\d)\.(\d\d)(?:\.|-|$)", image) if "nvcr.io/nvidia/" in image else None
    if tag:
        return 2000 + int(tag[1]), int(tag[2])
    created = "" if context.engine_error else str(context.images.get("vllm", {}).get("Created", ""))
    found = re.match(r"(\d{4})-(\d\d)-", created)
    return (int(found[1]), int(found[2])) if found and int(found[1]) > 2000 else None
