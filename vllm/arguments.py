"""From the container's environment to the command line of `vllm serve`. Errors name the key as .env has it."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from phase import StartError

# The contract's names: no client needs to know which model is served.
ALIASES = ("default", "generate", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen3-4B")
HERE = Path(__file__).resolve().parent
GIGABYTE = 10**9
T = TypeVar("T")


def serve(environment: Mapping[str, str], folder: Path, template: Path | None) -> list[str]:
    """The command line. Raises StartError for a value that cannot be used."""
    names = list(dict.fromkeys([environment["QMD_MODEL"], *ALIASES]))
    command = ["vllm", "serve", str(folder), "--config", str(HERE / "serve.yaml"), "--served-model-name", *names]
    command += ["--dtype", environment.get("QMD_DTYPE") or "auto"]
    command += ["--max-model-len", str(_value(environment, "MAX_MODEL_LEN", "4096", int, lambda n: n > 0))]
    command += ["--max-num-seqs", str(_value(environment, "MAX_NUM_SEQS", "16", int, lambda n: n > 0))]
    utilization = _value(environment, "GPU_MEMORY_UTILIZATION", "0.20", float, lambda n: 0 < n <= 1)
    command += ["--gpu-memory-utilization", str(utilization)]
    if (kv_cache := kv_cache_bytes(environment)) is not None:
        command += ["--kv-cache-memory-bytes", str(kv_cache)]
    if _value(environment, "ENFORCE_EAGER", "false", _boolean):
        command.append("--enforce-eager")
    if template is not None:
        command += ["--chat-template", str(template)]
    return command + extra(environment)


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What vLLM takes from its environment alone: on a CPU the KV cache is sized in whole GiB."""
    result = {} if extra(environment) else {"HF_HUB_OFFLINE": "1"}  # the model is on the disk; an extra option may name another
    if (kv_cache := kv_cache_bytes(environment)) is not None:
        result["VLLM_CPU_KVCACHE_SPACE"] = str(math.ceil(kv_cache / 2**30))
    return result


def kv_cache_bytes(environment: Mapping[str, str]) -> int | None:
    """None: vLLM sizes it from what the memory fraction leaves."""
    if (environment.get("QMD_KV_CACHE_GB") or "auto").lower() == "auto":
        return None
    return int(_value(environment, "KV_CACHE_GB", "auto", float, lambda n: n > 0 and math.isfinite(n * GIGABYTE)) * GIGABYTE)


def extra(environment: Mapping[str, str]) -> list[str]:
    try:
        return shlex.split(environment.get("QMD_EXTRA_ARGS", ""))
    except ValueError as error:
        raise StartError(f"VLLM_EXTRA_ARGS cannot be read ({error})", "close its quotes in .env") from None


def runs_code(environment: Mapping[str, str]) -> bool:
    """Whether vLLM is told to run the code of the model's repository."""
    return any(argument.replace("_", "-") == "--trust-remote-code" for argument in extra(environment))


def chat_template(environment: Mapping[str, str]) -> Path | None:
    """The operator's own template, a file in vllm/. None where none is named."""
    name = environment.get("QMD_CHAT_TEMPLATE", "")
    if not name:
        return None
    file = HERE / name
    if not file.is_file():
        raise StartError(f"VLLM_CHAT_TEMPLATE={name} is not a file in vllm/", "put it there, or unset VLLM_CHAT_TEMPLATE in .env")
    return file


def wait_for_embed_seconds(environment: Mapping[str, str]) -> float:
    value = environment.get("QMD_WAIT_FOR_EMBED_SECONDS") or "30"
    with contextlib.suppress(ValueError):
        if math.isfinite(seconds := float(value)):
            return seconds
    raise StartError(f"WAIT_FOR_EMBED_SECONDS={value} is not a number", "correct it in .env")


def _value(
    environment: Mapping[str, str], name: str, default: str, read: Callable[[str], T], usable: Callable[[T], bool] = lambda value: True
) -> T:
    text = environment.get(f"QMD_{name}") or default
    try:
        value = read(text)
        if usable(value):
            return value
    except ValueError:
        pass
    raise StartError(f"VLLM_{name}={text} cannot be used", "correct it in .env; .env.example says what it takes")


def _boolean(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError(text)
    return known[text.lower()]
