"""The values of .env: numbers that are numbers, keys that something takes, and a configuration that Compose accepts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from qmdctl.checks.context import Context
from qmdctl.checks.finding import Finding
from qmdctl.compose_files import load
from qmdctl.errors import QmdError
from qmdctl.monitors import PORT_KEYS
from qmdctl.settings import FOREIGN_PREFIXES, PROXIES, Settings

# Keys whose value is a file's place and would be a secret in the wrong one.
SECRETS = {"HF_TOKEN": "HF_TOKEN_FILE", "HUGGING_FACE_HUB_TOKEN": "HF_TOKEN_FILE", "API_KEYS": "API_KEYS_FILE"}
OVERRIDE = "name it in the service's environment in a compose.override.yaml (which COMPOSE_FILE has to list)"
# Keys that the programs in the containers know, which makes them look as if they were taken: how to hand them on.
MEANT_FOR_A_CONTAINER = {
    "VLLM_": f"give vLLM's options in VLLM_EXTRA_ARGS; for a variable {OVERRIDE}",
    "HF_": OVERRIDE,
    "TS_": OVERRIDE,
}
DTYPES = ("auto", "bfloat16", "float32")  # of embed_service/settings.py
VLLM_DTYPES = ("auto", "bfloat16", "float16", "float32", "half", "float")


def _whole(text: str) -> bool:
    return text.isdecimal()


def _fraction(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False


def _size(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


KINDS: dict[str, tuple[Callable[[str], bool], str]] = {
    "QMD_UID": (_whole, "a number, as `id -u` prints"),
    "QMD_GID": (_whole, "a number, as `id -g` prints"),
    "MAX_BATCH_SIZE": (_whole, "a whole number"),
    "MAX_BATCH_TOKENS": (_whole, "a whole number"),
    "EMBED_MEMORY_GB": (_size, "a number of GB"),
    "VLLM_KV_CACHE_GB": (lambda text: text == "auto" or _size(text), "a number of GB, or auto"),
    "VLLM_GPU_MEMORY_UTILIZATION": (_fraction, "a number above 0 and at most 1"),
    "VLLM_MAX_MODEL_LEN": (_whole, "a whole number of tokens"),
    "VLLM_MAX_NUM_SEQS": (_whole, "a whole number"),
    "DTYPE": (lambda text: text in DTYPES, ", ".join(DTYPES)),
    "VLLM_DTYPE": (lambda text: text in VLLM_DTYPES, ", ".join(VLLM_DTYPES)),
    "ALERT_WEBHOOK_KIND": (lambda text: text in ("webhook", "slack", "discord"), "webhook, slack or discord"),
    "DEVICE": (lambda text: text in ("cuda", "auto", "cpu", "mps"), "cuda, auto, cpu or mps"),
}


def check(context: Context) -> Iterator[Finding]:
    settings = context.settings
    problems = [*_values(settings, context.services), *_unused(settings)]
    yield from problems
    refused = _refused(context)
    if refused:
        yield Finding("env_lint", "failure", f"Compose refuses the configuration: {refused}", fix="correct .env", configuration=True)
    elif not problems:
        yield Finding("env_lint", "ok", f"{len(settings.env.values)} keys in .env" if settings.env.values else "defaults; there is no .env")


def _values(settings: Settings, services: list[str]) -> Iterator[Finding]:
    for name, (usable, form) in KINDS.items():
        if name.startswith("VLLM_") and "vllm" not in services:
            continue
        value = settings[name]
        if value and not usable(value):
            what = f"{name}={value} cannot be used"
            yield Finding("env_lint", "failure", what, f"it comes from {settings.origin(name)}", f"set {name} to {form}", True)
    for name in ("EMBED_PORT", "VLLM_PORT", *(key for service, key in PORT_KEYS.items() if service in services)):
        try:
            settings.port(name)
        except QmdError as error:
            yield Finding("env_lint", "failure", error.message, "", error.fix, True)
    if "vllm" in services and settings["EMBED_PORT"] == settings["VLLM_PORT"]:
        what = f"EMBED_PORT and VLLM_PORT are both {settings['EMBED_PORT']}"
        yield Finding("env_lint", "failure", what, "", "give one of them another number", True)


def _unused(settings: Settings) -> Iterator[Finding]:
    passed = _passed_through(settings)
    for name in settings.env.values:
        if name in settings.keys_known or name in passed or name.startswith(FOREIGN_PREFIXES):
            continue
        meant = next((how for prefix, how in MEANT_FOR_A_CONTAINER.items() if name.startswith(prefix)), "")
        if name in SECRETS:
            what = f"{name} in .env reaches no container"
            fix = f"write it to a file in secrets/ and set {SECRETS[name]} to that file"
            yield Finding("env_lint", "warning", what, "docker inspect would show it there", fix)
        elif name.upper() in PROXIES:
            fix = "set HTTPS_PROXY, and NO_PROXY for what is reached without it, in capitals"
            yield Finding("env_lint", "warning", f"{name} in .env reaches no container", "the downloads are made by https", fix)
        elif meant:
            yield Finding("env_lint", "warning", f"{name} in .env reaches no container", "the compose files do not name it", meant)
        else:
            yield Finding("env_lint", "warning", f"{name} in .env is taken by nothing", "", "remove it, or see .env.example for the keys")


def _passed_through(settings: Settings) -> set[str]:
    """Variables that a service's environment names without a value, which Compose fills from .env; all of .env for an env_file."""
    found: set[str] = set()
    for file in settings.files:
        for service in filter(None, (load(file).get("services") or {}).values()):
            given = service.get("environment") or {}
            found |= {name for name in given if not (given[name] if isinstance(given, dict) else "=" in name)}
            found |= set(settings.env.values) if "env_file" in service else set()
    return found


def _refused(context: Context) -> str:
    """What `docker compose config` has against the files, or empty."""
    from qmdctl.compose import Compose
    from qmdctl.terminal import Terminal

    compose = Compose(context.settings, Terminal())
    try:
        done = context.run(
            compose.command("config", "--quiet"), cwd=compose.folder, environment=compose.environment(), check=False, timeout_seconds=20
        )
    except QmdError:
        return ""  # no Compose: another check says so
    said = done.stderr.strip().splitlines()
    return "" if done.ok else (said[-1] if said else f"status {done.returncode}")
