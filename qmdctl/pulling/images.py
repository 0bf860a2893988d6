"""Images: their size in the registry, and the pull itself with its bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qmdctl.engine import Engine
from qmdctl.errors import MissingError, QmdError
from qmdctl.hardware import ARCHITECTURES
from qmdctl.process import run
from qmdctl.pulling.progress import Progress
from qmdctl.symptoms import match


def registry_bytes(image: str, architecture: str) -> int | None:
    """Compressed bytes of the image's layers for this architecture, as its registry lists them; None when it does not tell."""
    insecure = ["--insecure"] if image.startswith(("localhost:", "127.")) else []
    try:
        done = run(["docker", "manifest", "inspect", "--verbose", *insecure, image], check=False, timeout_seconds=30)
        listed = json.loads(done.stdout) if done.ok else None
    except (QmdError, ValueError):
        return None
    wanted = ARCHITECTURES.get(architecture, architecture)
    for entry in listed if isinstance(listed, list) else [listed]:
        if not isinstance(entry, dict):
            continue
        platform = (entry.get("Descriptor") or {}).get("platform") or {}
        if platform.get("architecture", wanted) == wanted:
            manifest = entry.get("SchemaV2Manifest") or entry.get("OCIManifest") or {}
            sizes = [int(layer.get("size", 0)) for layer in manifest.get("layers") or []]
            return sum(sizes) or None
    return None


def pull_image(engine: Engine, image: str, progress: Progress, facts: Mapping[str, str]) -> str:
    """Pull it and return its name; layers that are here do not count. Raises MissingError for a known cause, else QmdError."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    layers: dict[str, tuple[int, int]] = {}
    label = f"image {image}"
    progress.set(label, state="downloading")
    try:
        for event in engine.client.api.pull(image, stream=True, decode=True):
            if "error" in event:
                raise failed(image, str(event["error"]), facts)
            _count(event, layers)
            progress.set(label, done=sum(done for done, _ in layers.values()), total=sum(total for _, total in layers.values()))
    except APIError as error:
        raise failed(image, str(error.explanation or error), facts) from None
    except (DockerException, RequestException) as error:  # a credential helper that is not there, an engine that went away
        raise failed(image, str(error), facts) from None
    progress.set(label, state="complete")
    return image


def _count(event: dict[str, Any], layers: dict[str, tuple[int, int]]) -> None:
    name, detail = str(event.get("id", "")), event.get("progressDetail") or {}
    if event.get("status") == "Downloading" and detail.get("total"):
        layers[name] = (int(detail.get("current", 0)), int(detail["total"]))
    elif event.get("status") in ("Download complete", "Pull complete") and name in layers:
        layers[name] = (layers[name][1], layers[name][1])


def failed(image: str, said: str, facts: Mapping[str, str]) -> QmdError:
    """The cause in one sentence, where it is a known one."""
    symptom = match("compose", said.splitlines(), facts)
    if symptom:
        return MissingError(f"{image}: {symptom.cause}", symptom.fix, f"  {said[:300]}")
    return QmdError(f"{image} could not be pulled: {said[:300]}", "qmdctl pull goes on with what is missing")
