"""The processor that the images are built for, and the machine's."""

from __future__ import annotations

from collections.abc import Iterator

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding
from qmdctl.hardware import ARCHITECTURES


def check(context: Context) -> Iterator[Finding]:
    machine = ARCHITECTURES.get(str(context.info.get("Architecture", "")), str(context.info.get("Architecture", "")))
    if not context.images:
        raise Unavailable(f"no image is here yet; the machine is {machine}")
    for service, image in context.images.items():
        built = str(image.get("Architecture", ""))
        if built == machine:
            yield Finding("architecture", "ok", f"{service}'s image is built for {machine}")
        else:
            key = "EMBED_IMAGE" if service == "embed" else "VLLM_IMAGE"
            fix = f"docker rmi {context.image(service)}, then qmdctl pull; or set {key} to an image for {machine}"
            yield Finding("architecture", "failure", f"{service}'s image is built for {built}", f"this machine is {machine}", fix)
