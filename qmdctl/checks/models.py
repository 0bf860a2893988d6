"""The models at the hub: there, and open to this token. Without a network nothing is said.

Weights that are here need no hub: where they may be, what the hub refuses is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding
from qmdctl.models.known import cached_config, is_folder

ANSWER_SECONDS = 5.0
REVISIONS = {"EMBED_MODEL": "EMBED_REVISION", "RERANK_MODEL": "RERANK_REVISION", "VLLM_MODEL": "VLLM_REVISION"}


def check(context: Context) -> Iterator[Finding]:
    settings = context.settings
    if settings["HF_HUB_OFFLINE"].lower() in ("1", "true", "yes", "on"):
        raise Unavailable("HF_HUB_OFFLINE forbids asking the hub")
    cache = context.hub_cache
    asked = {key: model for key, model in context.models().items() if not is_folder(model) and not (cache and cached_config(model, cache))}
    if not asked:
        raise Unavailable("every model is a folder or in the cache")
    endpoint, token = settings["HF_ENDPOINT"] or "https://huggingface.co", _token(context)
    with ThreadPoolExecutor(len(asked)) as pool:
        findings = list(pool.map(lambda item: ask(endpoint, item[0], item[1], settings[REVISIONS[item[0]]], token), asked.items()))
    for finding in findings:
        if finding.level == "failure" and context.weights_may_be_here:
            finding = replace(finding, level="warning", why=f"{finding.why}; a start goes on if the weights are here already")
        yield finding


def ask(endpoint: str, key: str, model: str, revision: str, token: str | None) -> Finding:
    """One model's entry in the hub's API, then the config.json of its revision, which a gated model refuses."""
    import httpx

    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(headers=headers, timeout=ANSWER_SECONDS, follow_redirects=True) as client:
            status = client.get(f"{endpoint}/api/models/{model}").status_code
            there = status == 200
            if there:
                status = client.head(f"{endpoint}/{model}/resolve/{quote(revision or 'main', safe='')}/config.json").status_code
    except httpx.HTTPError as error:
        return Finding("models", "skipped", f"{key}={model}: {endpoint} was not reached ({error or type(error).__name__})")
    page = f"{endpoint}/{model}"
    if status in (200, 307):
        return Finding("models", "ok", f"{key}={model} is at the hub")
    if there and status == 404 and revision:
        what = f"{key}={model} has no revision {revision} with a config.json"
        return Finding("models", "failure", what, "it answered 404", f"look at {page}; correct {REVISIONS[key]} in .env", True)
    if status == 404 or (status == 401 and not token):
        why = "or it is private, or gated, and HF_TOKEN_FILE names no token"
        fix = f"look at {page}; correct {key} in .env, or put a token into secrets/hf_token and set HF_TOKEN_FILE=./secrets/hf_token"
        return Finding("models", "failure", f"{key}={model} is not a model of {endpoint} that is open to everybody", why, fix, True)
    if status in (401, 403):
        what = f"{key}={model}: the hub refuses the token of HF_TOKEN_FILE" if token else f"{key}={model} is gated"
        fix = f"accept the licence at {page}, and put a token of that account into the file of HF_TOKEN_FILE"
        return Finding("models", "failure", what, f"it answered {status}", fix, True)
    return Finding("models", "skipped", f"{key}={model}: the hub answered {status}")


def _token(context: Context) -> str | None:
    name = context.settings["HF_TOKEN_FILE"]
    try:
        return (context.settings.project.folder / Path(name).expanduser()).read_text().strip() or None if name else None
    except OSError:
        return None
