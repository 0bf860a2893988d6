"""`embed-service inspect MODEL[@REVISION]`: what a model is and what it would take, before any of its weights is downloaded.

One JSON object on stdout, then the end:

{"model": "Qwen/Qwen3-Embedding-4B", "role": "embed", "revision": "5cf2…", "where": "hub", "architecture": "qwen3", "kind": "embedding",
 "total_bytes": 8052, "missing_bytes": 8052, "free_bytes": 10000, "fingerprint": "0a1b…", "config": {…}, …}
{"model": "…", "role": "embed", "error": "the sentence with the fix", "code": "gated"}                               exit status 1
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from embed_service.errors import ModelError
from embed_service.models import generation, hub_errors
from embed_service.models.check import describe_found, describe_remote
from embed_service.models.files import list_folder
from embed_service.models.fingerprint import embedding_fingerprint
from embed_service.models.hub import (
    Listing,
    ResolvedRepository,
    check_disk,
    fetch,
    find,
    find_newest,
    is_folder,
    missing_bytes,
    quiet,
    resolve_folder,
)
from embed_service.models.hub_errors import Wanted, want
from embed_service.models.repository import Repository
from embed_service.models.revisions import Revisions
from embed_service.models.spec import ModelSpec
from embed_service.settings import Settings

Purpose = Literal["embed", "rerank", "generate"]
GENERATES = ("ForCausalLM", "ForConditionalGeneration")


def main(name: str, role: Purpose, settings: Settings, *, newest: bool) -> int:
    """Prints the object; 0, or 1 where the model cannot serve as `role`."""
    model, _, revision = name.partition("@")
    try:
        told = inspect(model, revision or None, role, settings, newest=newest)
    except ModelError as error:
        told = {"error": error.message, "code": error.code}
    print(json.dumps({"model": model, "role": role, "requested": revision or "main", **told}), flush=True)  # noqa: T201
    return 1 if "error" in told else 0


def inspect(model: str, revision: str | None, role: Purpose, settings: Settings, *, newest: bool = False) -> dict[str, Any]:
    """What `main` prints. Sizes in bytes. Raises ModelError for a model that cannot serve as `role` or finds no room on the disk."""
    settings = _as(role, model, settings)
    if is_folder(model):
        return _of_folder(role, resolve_folder(model, settings), settings)
    quiet()
    wanted = want(model, revision, settings)
    found = find_newest(wanted) if newest else find(wanted)
    if isinstance(found, ResolvedRepository):
        size = sum(path.stat().st_size for path in Path(found.path).rglob("*") if path.is_file())
        told = _described(role, wanted.label, found, settings)
        place = {"where": "cache", "pinned": Revisions(wanted.cache).names(wanted.id, found.revision)}
        return {**told, **place, "total_bytes": size, "missing_bytes": 0, "free_bytes": _free(wanted.cache)}
    missing = missing_bytes(wanted, found)  # before the small files are fetched, which are needed all the same
    if role == "generate":
        told = _of_generation(wanted, found)
    else:
        spec = describe_remote(role, wanted, found, settings)
        told = {**_told(spec, settings), "config": _config(_small_files(wanted, found), wanted.label)}
    check_disk(missing, wanted.cache, wanted.label)
    size = sum(file.size for file in found.files)
    return {
        **told,
        "revision": found.commit,
        "where": "hub",
        "total_bytes": size,
        "missing_bytes": missing,
        "free_bytes": _free(wanted.cache),
    }


def _as(role: Purpose, model: str, settings: Settings) -> Settings:
    """The settings with the model in its place, so that errors name the setting that would be changed."""
    if role == "embed":
        return settings.model_copy(update={"embed_model": model, "rerank_model": ""})
    if role == "rerank":
        return settings.model_copy(update={"rerank_model": model})
    return settings.model_copy(update={"embed_model": "", "rerank_model": ""})


def _of_folder(role: Purpose, found: ResolvedRepository, settings: Settings) -> dict[str, Any]:
    setting = {"embed": "EMBED_MODEL", "rerank": "RERANK_MODEL", "generate": "VLLM_MODEL"}[role]
    size = sum((Path(found.path) / name).stat().st_size for name in list_folder(Path(found.path)))
    told = _described(role, f"{setting}={found.id}", found, settings)
    return {**told, "where": "folder", "total_bytes": size, "missing_bytes": 0, "free_bytes": _free(Path(found.path))}


def _described(role: Purpose, label: str, found: ResolvedRepository, settings: Settings) -> dict[str, Any]:
    if role == "generate":
        told = _generating(Path(found.path), label)
    else:
        told = {**_told(describe_found(role, found, settings), settings), "config": _config(Path(found.path), label)}
    return {**told, "revision": found.revision}


def _of_generation(wanted: Wanted, listing: Listing) -> dict[str, Any]:
    if not any(file.name.endswith(".safetensors") for file in listing.files):
        raise hub_errors.no_safetensors(wanted.label, wanted.setting)
    return _generating(_small_files(wanted, listing), wanted.label)


def _generating(folder: Path, label: str) -> dict[str, Any]:
    """A causal language model. Whether vLLM has its architecture only vLLM knows."""
    repository = Repository(folder, label)
    name = repository.architecture
    if repository.is_embedding_model or not name.endswith(GENERATES):
        what = "an embedding model (modules.json has a Pooling)" if repository.is_embedding_model else f"{name or 'unnamed'}"
        raise repository.unsupported(
            f"does not generate text: it is {what}. Choose a causal language model (…ForCausalLM), for example Qwen/Qwen3-4B."
        )
    chat = (folder / "chat_template.jinja").is_file() or "chat_template" in repository.json("tokenizer_config.json")
    return {
        "architecture": str(repository.config.get("model_type", "")),
        "kind": "generation",
        "chat_template": chat,
        "config": repository.config,
    }


def _told(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    told: dict[str, Any] = {
        "revision": spec.revision,
        "architecture": spec.architecture,
        "kind": spec.kind,
        "recognised": spec.recognised,
        "dimensions": spec.dimensions,
        "max_tokens": spec.max_tokens,
    }
    if spec.role == "embed":
        told["fingerprint"] = embedding_fingerprint(spec, settings.prompt_policy)
    return told


def _small_files(wanted: Wanted, listing: Listing) -> Path:
    """The snapshot folder with all but the weights."""
    small = [file for file in listing.files if not generation.is_weights(file.name)]
    return fetch(wanted, Listing(listing.commit, small), lambda done, total: None)


def _config(folder: Path, label: str) -> dict[str, Any]:
    return dict(Repository(folder, label).config)


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
