"""From what huggingface_hub raises to one sentence with the fix."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from embed_service.errors import ModelError
from embed_service.settings import Settings

# For the hint on a misspelt id: the models that the documentation names.
KNOWN = (
    "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Embedding-8B",
    "Qwen/Qwen3-Reranker-0.6B", "Qwen/Qwen3-Reranker-4B", "Qwen/Qwen3-Reranker-8B",
    "nomic-ai/nomic-embed-text-v1.5", "BAAI/bge-base-en-v1.5", "BAAI/bge-reranker-base", "BAAI/bge-reranker-v2-m3",
    "sentence-transformers/all-MiniLM-L6-v2",
)  # fmt: skip
LARGER_DISK = "move the cache to a larger disk (HF_CACHE_DIR in the stack's .env, else HF_HOME)"


@dataclass(frozen=True)
class Wanted:
    """A model as configured: for the words of an error."""

    setting: str  # EMBED_MODEL, RERANK_MODEL or VLLM_MODEL
    id: str
    revision: str
    token: str | None
    token_source: str  # "HF_TOKEN_FILE (/run/secrets/hf_token)", "HF_TOKEN", …
    endpoint: str
    cache: Path

    @property
    def label(self) -> str:
        return f"{self.setting}={self.id}"

    @property
    def for_generation(self) -> bool:
        """Downloaded ahead for vLLM, which takes other files."""
        return self.setting == "VLLM_MODEL"


def want(model_id: str, revision: str | None, settings: Settings) -> Wanted:
    """Reads the token: HF_TOKEN_FILE, else HF_TOKEN, else a saved login. Raises ModelError for a file that holds no token."""
    from huggingface_hub import constants, get_token

    ours = {settings.rerank_model: "RERANK_MODEL", settings.embed_model: "EMBED_MODEL"}
    setting = ours.get(model_id, "VLLM_MODEL")  # prefetch.py takes the generation server's as well
    token, source = None, "HF_TOKEN_FILE or HF_TOKEN"
    if settings.hf_token_file:
        try:
            token = Path(settings.hf_token_file).expanduser().read_text().strip() or None
        except (OSError, UnicodeDecodeError):
            token = None  # a compose secret that nobody filled: open models need none, and a gated one says so
        source = f"HF_TOKEN_FILE ({settings.hf_token_file})"
    if token is None:
        with contextlib.suppress(OSError):  # a saved login of another user, in a cache that is shared
            token = get_token()
        if token is not None:
            source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the saved login of `hf auth login`"
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ModelError("unauthorized", f"{source} does not hold a Hugging Face token: put one line beginning with hf_ there.")
    return Wanted(setting, model_id, revision or "main", token, source, constants.ENDPOINT, Path(constants.HF_HUB_CACHE))


def translate(error: Exception, wanted: Wanted) -> ModelError:
    """The sentence for an exception of huggingface_hub, its HTTP client or the file system."""
    from huggingface_hub import errors as hf

    if isinstance(error, ModelError):
        return error
    if isinstance(error, hf.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return translate(error.__cause__, wanted)
    if isinstance(error, hf.OfflineModeIsEnabled):
        return offline_forbidden(wanted)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hf.GatedRepoError):
        return _gated(wanted)
    if isinstance(error, hf.RevisionNotFoundError):
        return ModelError(
            "not_found",
            f"{wanted.label} has no revision {wanted.revision!r}: set {wanted.setting.replace('MODEL', 'REVISION')} to a branch, tag or "
            f"commit listed at {wanted.endpoint}/{wanted.id}/commits/main, or unset it.",
        )
    if isinstance(error, hf.RepositoryNotFoundError | hf.HFValidationError):
        return _not_found(wanted)
    if isinstance(error, hf.DisabledRepoError):
        return ModelError("not_found", f"{wanted.label} is disabled by the hub: set {wanted.setting} to another model.")
    if status == 401:
        return _unauthorized(wanted)
    if status == 403:
        return _gated(wanted)
    if status == 404:
        return _not_found(wanted)
    if status is None and isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return _disk(error, wanted)
    return unreachable(wanted, f"it answered {status}" if status else (str(error).splitlines() or [type(error).__name__])[0])


def offline_forbidden(wanted: Wanted) -> ModelError:
    return ModelError(
        "offline",
        f"{wanted.label} (revision {wanted.revision}) is not in the cache at {wanted.cache} and HF_HUB_OFFLINE forbids downloading it: "
        f"unset HF_HUB_OFFLINE for one start, or set {wanted.setting} to a folder that holds the model.",
    )


def unreachable(wanted: Wanted, reason: str) -> ModelError:
    return ModelError(
        "offline",
        f"{wanted.endpoint} cannot be used ({reason}) and {wanted.label} is not completely in the cache at {wanted.cache}: check the "
        "network (behind a proxy set HTTPS_PROXY); what is there already is kept and the download goes on from it.",
        retryable=True,
    )


def no_safetensors(wanted_label: str, setting: str) -> ModelError:
    return ModelError(
        "no_safetensors",
        f"{wanted_label} has no weights in safetensors, and pickled weights (*.bin, *.pt) are never loaded because they can run code: "
        f"set {setting} to a model with model.safetensors, or convert a trusted one with transformers' save_pretrained.",
    )


def no_weights(wanted: Wanted) -> ModelError:
    return ModelError(
        "no_safetensors",
        f"{wanted.label} has no weights that vLLM reads (*.safetensors, *.bin): set {wanted.setting} to a model that has.",
    )


def no_disk(needed: int, free: int, cache: Path, label: str) -> ModelError:
    return ModelError(
        "no_disk",
        f"{label} needs {needed / 1e9:.2f} GB more on the disk and {free / 1e9:.2f} GB are free at {cache}: free some space, or "
        f"{LARGER_DISK}.",
        retryable=True,
    )


def _gated(wanted: Wanted) -> ModelError:
    page = f"{wanted.endpoint}/{wanted.id}"
    if wanted.token is None:
        fix = f"accept its licence at {page}, then put a token of that account into the file of HF_TOKEN_FILE"
        return ModelError("gated", f"{wanted.label} is gated: {fix} (outside the stack HF_TOKEN will do).")
    return ModelError(
        "gated",
        f"{wanted.label} is gated and the token of {wanted.token_source} has no access: accept its licence at {page} with that "
        "token's account (a fine-grained token also needs read access to gated repositories).",
    )


def _unauthorized(wanted: Wanted) -> ModelError:
    if wanted.token is None:
        return _not_found(wanted)
    return ModelError(
        "unauthorized",
        f"The hub refuses the token of {wanted.token_source} as invalid: put a new one from {wanted.endpoint}/settings/tokens there, or "
        "remove it if no model is gated.",
    )


def _not_found(wanted: Wanted) -> ModelError:
    near = difflib.get_close_matches(wanted.id.lower(), [k.lower() for k in KNOWN if k != wanted.id], n=1, cutoff=0.8)
    hint = next((f" Did you mean {k}?" for k in KNOWN if near and k.lower() == near[0]), "")
    private = "" if wanted.token else ", or is private and HF_TOKEN_FILE (outside the stack HF_TOKEN) holds no token"
    return ModelError(
        "not_found",
        f"{wanted.label} is not a model of {wanted.endpoint}{private}: correct {wanted.setting} (organisation/name, or a folder).{hint}",
    )


def _disk(error: OSError, wanted: Wanted) -> ModelError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(
            "no_disk",
            f"The disk at {wanted.cache} became full while {wanted.label} was downloaded: free some space, or {LARGER_DISK}; "
            "the download goes on from where it stopped.",
            retryable=True,
        )
    fix = "make the folder writable, or set another (HF_CACHE_DIR in the stack's .env, else HF_HOME)"
    if error.errno in (errno.EACCES, errno.EPERM):
        fix = "give the cache to the user that the service runs as (in the stack QMD_UID)"
        folder = next((folder for folder in (wanted.cache, *wanted.cache.parents) if os.path.exists(folder)), Path("/"))
        if folder.stat().st_uid != 0:  # nothing here is to run as root
            fix += ", or set QMD_UID to its owner"
    return ModelError("no_disk", f"{wanted.label} cannot be stored in {wanted.cache} ({error.strerror or error}): {fix}.", retryable=True)
