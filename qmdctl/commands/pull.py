"""`qmdctl pull`: images and weights of both services, so that a start needs no network."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from qmdctl.compose import Compose
    from qmdctl.engine import Engine
    from qmdctl.settings import Settings
    from qmdctl.terminal import Terminal

BUILD_DOWNLOADS = 3_000_000_000  # packages of the embed image; measured with CUDA's torch


def pull(context: typer.Context, json_output: JsonOption = False) -> None:
    """Download images and models.

    Both services' at the same time, the total first. What is there already is not downloaded again, and what was cut off goes on.
    The embed image is built here, from packages.
    """
    from qmdctl.engine import Engine
    from qmdctl.errors import InterruptedByUser
    from qmdctl.pulling.images import pull_image
    from qmdctl.pulling.progress import Progress
    from qmdctl.pulling.weights import download, stop_download, wanted_models

    call = invocation(context)
    terminal = call.output(json_output)
    settings = call.settings()
    engine = Engine.connect()
    compose = call.compose(settings)
    models = wanted_models(settings)
    planned = announce(settings, engine, models, terminal)
    progress = Progress(terminal)

    def images() -> list[str]:
        return [pull_image(engine, image, progress, settings) for name, image in planned["images"].items() if name not in ("base", "embed")]

    def weights() -> list[dict[str, Any]]:
        # Kept as an image of its own: a later build asks the registry for a base that only the build cache has.
        if "base" in planned["images"]:
            pull_image(engine, planned["images"]["base"], progress, settings)
        build(compose, settings)
        return download(compose, models, progress) if models else []

    try:
        pulled, downloaded = together(images, weights)
    except KeyboardInterrupt:
        stop_download(engine)
        raise InterruptedByUser("Interrupted. What is downloaded is kept.", "qmdctl pull goes on") from None
    finally:
        progress.close()
    data = {"status": "complete", "pulled": pulled, "built": settings["EMBED_IMAGE"], "models": downloaded, "planned": planned}
    terminal.result("Everything is here: the next start needs no network.", data)


def announce(settings: Settings, engine: Engine, models: list[str], terminal: Terminal) -> dict[str, Any]:
    """Say what will be downloaded, the total last. Returns it."""
    from qmdctl import monitors
    from qmdctl.pulling.images import registry_bytes
    from qmdctl.pulling.weights import hub_bytes, read_token
    from qmdctl.tailnet import SIDECARS
    from qmdctl.terminal import human_bytes, table

    architecture = str(engine.info().get("Architecture", ""))
    endpoint, token = settings["HF_ENDPOINT"] or "https://huggingface.co", read_token(settings)
    keys = {"base": "EMBED_BASE_IMAGE", "embed": "EMBED_IMAGE"}
    keys |= {"vllm": "VLLM_IMAGE"} if "vllm" in settings.services else {}
    keys |= {"sidecar": "TAILSCALE_IMAGE"} if any(name in SIDECARS for name in settings.services) else {}
    keys |= {name: key for name, key in monitors.IMAGE_KEYS.items() if name in settings.services}
    missing = {name: settings[key] for name, key in keys.items() if settings[key] and not engine.has_image(settings[key])}
    with ThreadPoolExecutor(8) as pool:
        pulled = [image for name, image in missing.items() if name != "embed"]
        asked: dict[str, Future[int | None]] = {f"image {image}": pool.submit(registry_bytes, image, architecture) for image in pulled}
        asked |= {f"weights {name}": pool.submit(hub_bytes, name, endpoint, token) for name in models}
        sizes = {name: future.result() for name, future in asked.items()}
        if "embed" in missing:
            sizes[f"packages for {missing['embed']}, about"] = BUILD_DOWNLOADS
    known = sum(size for size in sizes.values() if size)
    unknown = [name for name, size in sizes.items() if size is None]
    rows = [(name, human_bytes(size) if size is not None else "size not known") for name, size in sizes.items()]
    more = f", and {len(unknown)} of unknown size" if unknown else ""
    terminal.note(table([*rows, (f"at most, less what the cache has{more}", human_bytes(known))]))
    return {"images": missing, "bytes": sizes, "total_bytes": known}


def build(compose: Compose, settings: Settings) -> None:
    """The embed image, built where its files changed. MissingError or QmdError with what the build said."""
    from qmdctl.errors import MissingError, QmdError
    from qmdctl.process import ProcessError
    from qmdctl.releases.images import taken_as_it_is
    from qmdctl.startup.compose_up import run_shown
    from qmdctl.symptoms import match

    if taken_as_it_is(compose.folder, settings["EMBED_IMAGE"]):  # built, another image would have its name
        return
    command = compose.command("build", "embed")
    compose.echo(command)
    done = run_shown(command, compose.folder, compose.environment(), tty=False)
    if done.ok:
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    symptom = match("compose", lines, settings)
    if symptom:
        raise MissingError(f"The embed image could not be built: {symptom.cause}", symptom.fix)
    raise QmdError(f"The embed image could not be built: {lines[-1] if lines else ProcessError(done).message}", "its output is above")


def together(*jobs: Callable[[], Any]) -> list[Any]:
    """All at once. When some fail the others go on to their end; then the first error is raised, the rest in its details.

    In threads that end with the program: after Ctrl-C nobody waits for a download.
    """
    from qmdctl.errors import QmdError

    results: list[Any] = [None] * len(jobs)

    def run(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in results:
        if isinstance(other, Exception) and not isinstance(other, QmdError):
            raise other
    errors = [error for error in results if isinstance(error, QmdError)]
    if errors:
        errors[0].details = "\n".join([errors[0].details, *(f"✗ {error.message}\n  → {error.fix}" for error in errors[1:])]).strip("\n")
        raise errors[0]
    return results
