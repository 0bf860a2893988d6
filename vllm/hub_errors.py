"""From what huggingface_hub (0.36 to 2.x) and the file system raise to one sentence with the fix."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from phase import StartError


class HubError(StartError):
    """`offline`: the hub was not reached, so what lies in the cache may be served."""

    def __init__(self, cause: str, fix: str, *, offline: bool = False) -> None:
        super().__init__(cause, fix)
        self.offline = offline


def sentence(error: BaseException, model: str, revision: str, cache: Path, *, has_token: bool) -> HubError:
    """`error` in words. The cause of a library's wrapper counts, not the wrapper."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return sentence(error.__cause__, model, revision, cache, has_token=has_token)
    label, page = f"VLLM_MODEL={model}", f"{constants.ENDPOINT}/{model}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(
            f"{label} is not complete in {cache} and HF_HUB_OFFLINE forbids downloading it", "unset HF_HUB_OFFLINE", offline=True
        )
    if isinstance(error, errors.GatedRepoError) or status == 403:
        fix = (
            "the token of HF_TOKEN_FILE must belong to that account" if has_token else "then put a token of that account into HF_TOKEN_FILE"
        )
        return HubError(f"the hub refuses {label}: it is gated", f"accept its licence at {page}; {fix}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{label} has no revision {revision!r}", "correct VLLM_REVISION, or unset it")
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{label} is not a model's name", "set VLLM_MODEL to organisation/name, or to a folder in the container")
    if status == 401 and has_token:
        return HubError("the hub refuses the token of HF_TOKEN_FILE", f"put a new one from {constants.ENDPOINT}/settings/tokens there")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        private = "" if has_token else ", or is private and HF_TOKEN_FILE holds no token"
        return HubError(f"{label} is not a model of {constants.ENDPOINT}{private}", "correct VLLM_MODEL (organisation/name)")
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return HubError(f"the disk at {cache} became full", "free some space, or set HF_CACHE_DIR to a folder on a larger disk")
    if number == errno.EROFS:
        return HubError(f"{cache} is read-only and cannot be written by this user", "mount it writable, or set HF_CACHE_DIR to another")
    if number in (errno.EACCES, errno.EPERM):
        return HubError(f"{cache} cannot be written by this user", _give_to_user(cache))
    said = f"it answered {status}" if status else (str(error).splitlines() or [type(error).__name__])[0]
    fix = "check the network (behind a proxy set HTTPS_PROXY); what is downloaded is kept"
    return HubError(f"{constants.ENDPOINT} cannot be used ({said}) and {label} is not complete in {cache}", fix, offline=True)


def _give_to_user(cache: Path) -> str:
    """A cache of root's (a volume that an earlier image made) is given away: nothing here is to run as root."""
    fix = "give the cache to the user that the containers run as (QMD_UID)"
    folder = next((folder for folder in (cache, *cache.parents) if os.path.exists(folder)), Path("/"))
    return fix if folder.stat().st_uid == 0 else f"{fix}, or set QMD_UID to its owner"
