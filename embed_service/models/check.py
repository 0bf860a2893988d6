"""`embed-service check`: everything that would stop the service, found without serving and without downloading weights."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from embed_service.errors import ModelError
from embed_service.models.hub import Listing, ResolvedRepository, check_disk, fetch, find, is_folder, missing_bytes, quiet, resolve_folder
from embed_service.models.hub_errors import Wanted, want
from embed_service.models.spec import ModelSpec, Role
from embed_service.settings import Settings

DEVICE_SECONDS = 180
DEVICE_PROBE = """
import json
from embed_service.errors import ModelError
from embed_service.settings import load_settings
try:
    from embed_service.engine.device import choose_device
    device = choose_device(load_settings())
    print(json.dumps({"ok": True, "message": f"{device.type}, {device.dtype_name}, {device.attention}"}))
except ModelError as error:
    print(json.dumps({"ok": False, "message": error.message}))
"""


@dataclass(frozen=True)
class Finding:
    """`message` of a finding that is not ok is the sentence that /health says, with the fix."""

    setting: str
    ok: bool
    message: str
    missing_bytes: int = 0  # still to be downloaded


def check(settings: Settings) -> list[Finding]:
    """Both models (existence, access, files, architecture), the disk for both, and the device. Never raises ModelError."""
    device = ThreadPoolExecutor(1).submit(_device)  # torch takes seconds to import
    models = [_model("embed", settings)]
    if not _cosine(settings):
        models.append(_model("rerank", settings))
    elif models[0].ok:
        models.append(Finding("RERANK_MODEL", True, "the same as EMBED_MODEL: reranks by cosine"))
    return [*models, *_disk(models, settings), device.result()]


def main(settings: Settings) -> int:
    """Prints the findings; 0 if all are ok, else 3."""
    findings = check(settings)
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.setting}: {finding.message}")  # noqa: T201
    return 0 if all(finding.ok for finding in findings) else 3


def _model(role: Role, settings: Settings) -> Finding:
    setting = f"{role.upper()}_MODEL"
    if role == "embed":
        model_id, revision = settings.embed_model, settings.embed_revision
    else:
        model_id, revision = settings.rerank_model, settings.rerank_revision
    missing = 0
    try:
        if is_folder(model_id):
            spec, where = describe_found(role, resolve_folder(model_id, settings), settings), "a folder"
        else:
            quiet()
            wanted = want(model_id, revision, settings)
            found = find(wanted)
            if isinstance(found, ResolvedRepository):
                spec, where = describe_found(role, found, settings), "in the cache"
            else:
                missing = missing_bytes(wanted, found)
                check_disk(missing, wanted.cache, wanted.label)
                spec = describe_remote(role, wanted, found, settings)
                where = f"to be downloaded, {missing / 1e9:.2f} GB"
    except ModelError as error:
        return Finding(setting, False, error.message)
    return Finding(setting, True, f"{spec.id} ({spec.architecture}, {spec.kind}, revision {spec.revision[:12]}): {where}", missing)


def _cosine(settings: Settings) -> bool:
    return settings.rerank_model == settings.embed_model


def _disk(models: list[Finding], settings: Settings) -> list[Finding]:
    """Whether both models together fit; each alone is looked at before."""
    missing = sum(model.missing_bytes for model in models)
    if not missing:
        return []
    from huggingface_hub import constants

    try:
        check_disk(missing, Path(constants.HF_HUB_CACHE), f"EMBED_MODEL={settings.embed_model} with RERANK_MODEL={settings.rerank_model}")
    except ModelError as error:
        return [Finding("HF_HOME", False, error.message)]
    return [Finding("HF_HOME", True, f"{constants.HF_HUB_CACHE} has room for {missing / 1e9:.2f} GB")]


def describe_found(role: Role, repository: ResolvedRepository, settings: Settings) -> ModelSpec:
    from embed_service.models.describe import describe

    return describe(role, repository.id, repository.revision, repository.path, settings, settings.embed_model)


def describe_remote(role: Role, wanted: Wanted, listing: Listing, settings: Settings) -> ModelSpec:
    """From the small files alone: they go into the cache, where a later start finds them; of the weights only the names are shown."""
    small = [file for file in listing.files if not file.name.endswith(".safetensors")]
    snapshot = fetch(wanted, Listing(listing.commit, small), lambda done, total: None)
    with tempfile.TemporaryDirectory(prefix="embed-service-check-") as folder:
        for file in listing.files:
            path = Path(folder, file.name)
            path.parent.mkdir(exist_ok=True)
            if file in small:
                path.symlink_to((snapshot / file.name).resolve())
            else:
                path.touch()
        return describe_found(role, ResolvedRepository(wanted.id, folder, listing.commit), settings)


def _device() -> Finding:
    """In a process of its own: torch stays out of this one."""
    try:
        probe = subprocess.run([sys.executable, "-c", DEVICE_PROBE], capture_output=True, text=True, timeout=DEVICE_SECONDS, check=False)
        answer = json.loads(probe.stdout.splitlines()[-1])
        return Finding("DEVICE", bool(answer["ok"]), str(answer["message"]))
    except (IndexError, ValueError):
        last = (probe.stderr.strip().splitlines() or [f"it ended with {probe.returncode}"])[-1]
        return Finding("DEVICE", False, f"torch cannot be used ({last}): install the service again with its dependencies.")
    except subprocess.TimeoutExpired:
        return Finding("DEVICE", False, f"the device did not answer within {DEVICE_SECONDS} s: restart the driver or the machine.")
