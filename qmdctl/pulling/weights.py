"""Weights: their size at the hub, and the download by the embed image's own downloader, into the cache that both services read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from qmdctl.catalog.roles import REVISION_OF
from qmdctl.compose import Compose
from qmdctl.engine import Engine, answering
from qmdctl.errors import MissingError, QmdError
from qmdctl.models.known import KNOWN, is_folder
from qmdctl.models.size import weight_bytes
from qmdctl.process import ProcessError, stream
from qmdctl.pulling.progress import Progress
from qmdctl.settings import Settings

ANSWER_SECONDS = 10.0
CONTAINER = f"qmd-download-{os.getpid()}"


def wanted_models(settings: Settings) -> list[str]:
    """MODEL[@REVISION] of the services that run; folders are there already."""
    keys = ["EMBED_MODEL", "RERANK_MODEL", *(["VLLM_MODEL"] if "vllm" in settings.services else [])]
    named = [(settings[key], settings[REVISION_OF[key]]) for key in keys if settings[key] and not is_folder(settings[key])]
    return list(dict.fromkeys(f"{model}@{revision}" if revision else model for model, revision in named))


def hub_bytes(name: str, endpoint: str, token: str | None) -> int | None:
    """Bytes of the files that are served, as the hub lists them; else of the table of known models; None when neither has it."""
    import httpx

    model, _, revision = name.partition("@")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        answer = httpx.get(
            f"{endpoint}/api/models/{model}/revision/{revision or 'main'}",
            params={"blobs": "true"},
            headers=headers,
            timeout=ANSWER_SECONDS,
        )
        listed = answer.json().get("siblings") if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError, AttributeError):
        listed = None
    if listed:
        sizes = {str(one.get("rfilename")): int(one.get("size") or 0) for one in listed}
        weights = {name: size for name, size in sizes.items() if name.endswith(".safetensors") and "/" not in name}
        single = {"model.safetensors": weights["model.safetensors"]} if "model.safetensors" in weights else weights
        texts = {name: size for name, size in sizes.items() if PurePosixPath(name).suffix in (".json", ".txt", ".model", ".jinja")}
        return sum({**single, **texts}.values())
    known = KNOWN.get(model)
    return int(known.get("download_bytes") or weight_bytes(known, str(known.get("dtype") or "bfloat16"))) if known else None


def read_token(settings: Settings) -> str | None:
    name = settings["HF_TOKEN_FILE"]
    try:
        return (settings.project.folder / Path(name).expanduser()).read_text().strip() or None if name else None
    except OSError:
        return None


def download(compose: Compose, models: list[str], progress: Progress) -> list[dict[str, Any]]:
    """Run the downloader in a container of the embed image. Returns its last line on each model.

    Raises QmdError, which names every model that failed, after the others are complete.
    """
    return follow(_lines(compose, models), models, progress)


def follow(lines: Iterable[dict[str, Any]], models: list[str], progress: Progress, again: str = "qmdctl pull") -> list[dict[str, Any]]:
    """Show what the downloader prints, and return its last line on each model. Raises QmdError as `download` does.

    `again`: the command that goes on with it.
    """
    last: dict[str, dict[str, Any]] = {}
    for line in lines:
        name = str(line.get("model", ""))
        last[name] = line
        _show(progress, line)
    errors = [line for line in last.values() if "error" in line]
    if errors:
        first, *more = (f"{line['model']}: {line['error']}" for line in errors)
        raise QmdError(first, f"what is downloaded is kept: mend that, then {again}", "\n".join(f"  {text}" for text in more))
    missing = [name for name in models if "path" not in last.get(name, {})]
    if missing:
        raise QmdError(f"The download of {', '.join(missing)} ended without a result", f"see its output above; {again} goes on")
    return list(last.values())


def stop_download(engine: Engine) -> None:
    """End the downloader after Ctrl-C: Compose may end before it has handed the signal on, and the container would go on by itself."""
    with contextlib.suppress(MissingError), answering():  # mostly it has ended already
        engine.client.api.remove_container(CONTAINER, force=True)


def _lines(compose: Compose, models: list[str]) -> Iterator[dict[str, Any]]:
    command = compose.command("run", "--rm", "--name", CONTAINER, "--no-deps", "--no-TTY", "--quiet-pull", "embed", "download", *models)
    compose.echo(command)
    try:
        for text in stream(command, cwd=compose.folder, environment=compose.environment()):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "model" in line:
                yield line
    except ProcessError as error:
        if error.completed.returncode != 1:  # 1: a download failed, and its line says why
            raise


def _show(progress: Progress, line: Mapping[str, Any]) -> None:
    name = f"weights {line['model']}"
    if "error" in line:
        progress.set(name, state="failed")
    elif "path" in line:
        progress.set(name, state="complete")
    elif "missing_bytes" in line:
        progress.set(name, state="downloading" if line["missing_bytes"] else "waiting", total=int(line["missing_bytes"]))
    else:
        progress.set(name, state="downloading", done=int(line["done_bytes"]), total=int(line["total_bytes"]))
