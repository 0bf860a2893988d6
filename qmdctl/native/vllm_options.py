"""The command line of `vllm serve`, as the seed's container or unit has it → the keys of .env that say the same."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from qmdctl.redaction import command_lines
from qmdctl.redaction.names import secret_option

SERVER_MODULE = "vllm.entrypoints.openai.api_server"
KEYS = {
    "--gpu-memory-utilization": "VLLM_GPU_MEMORY_UTILIZATION",
    "--max-model-len": "VLLM_MAX_MODEL_LEN",
    "--max-num-seqs": "VLLM_MAX_NUM_SEQS",
    "--dtype": "VLLM_DTYPE",
    "--revision": "VLLM_REVISION",
}
UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}  # as vLLM reads 40k and 40K
GIGABYTE = 10**9
# What says how the model is run, and means the same in another container: they go into VLLM_EXTRA_ARGS as they are.
CARRIED = frozenset(
    (
        *("--async-scheduling", "--block-size", "--code-revision", "--cpu-offload-gb", "--enable-auto-tool-choice"),
        *("--enable-chunked-prefill", "--no-enable-chunked-prefill", "--enable-prefix-caching", "--no-enable-prefix-caching"),
        *("--generation-config", "--override-generation-config", "--hf-overrides", "--kv-cache-dtype", "--limit-mm-per-prompt"),
        *("--load-format", "--max-num-batched-tokens", "--pipeline-parallel-size", "--quantization", "--reasoning-parser", "--seed"),
        *("--swap-space", "--tensor-parallel-size", "--tokenizer-mode", "--tokenizer-revision", "--tool-call-parser"),
        "--trust-remote-code",
    )
)
SHORT = {"-tp": "--tensor-parallel-size", "-pp": "--pipeline-parallel-size", "-q": "--quantization"}
# Options without a value, and those with several; any other takes one.
FLAG = re.compile(r"--(?:enforce-eager|trust-remote-code|async-scheduling|(?:enable|disable|no)-.+)|-O.+")
SEVERAL = ("--served-model-name", "--api-key", "--lora-modules", "--limit-mm-per-prompt", "--cudagraph-capture-sizes", "--cuda-graph-sizes")
EXTRA = ""
# The stack sets these itself, or they mean nothing in it.
OWN = frozenset(("--host", "--port", "--download-dir", "--uvicorn-log-level", "--disable-log-requests", "--disable-log-stats"))


@dataclass(frozen=True)
class Serving:
    """`values`: keys of .env. `left`: options that have no counterpart; `names`: what clients may call the model."""

    model: str = ""
    values: dict[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    port: int = 8000
    found: bool = False


def translate(command: Sequence[str]) -> Serving:
    """What the command line says; `found` is False where it does not start vLLM's server."""
    words = server_words(command)
    if words is None:
        return Serving()
    model, options = parse(words)
    values: dict[str, str] = {}
    extra: list[str] = []
    left: list[str] = []
    port = 8000
    for name, given in options:
        value = given[0] if given else ""
        if name == "--model":
            model = model or value
        elif name == "--port" and value.isdecimal():
            port = int(value)
        elif name in KEYS and value:
            number = whole(value) if name in ("--max-model-len", "--max-num-seqs") else value
            if number:
                values[KEYS[name]] = number
            else:
                left.append(command_lines.command([name, *given]))
        elif name in ("--kv-cache-memory-bytes", "--kv-cache-memory") and whole(value):
            values["VLLM_KV_CACHE_GB"] = f"{int(whole(value)) / GIGABYTE:g}"
        elif name == "--enforce-eager":
            values["VLLM_ENFORCE_EAGER"] = "true"
        elif name in CARRIED:
            extra += [name, *given]
        elif name == EXTRA:
            left.append(command_lines.command(given))
        elif name != "--served-model-name" and name not in OWN:
            left.append(name if secret_option(name) else command_lines.command([name, *given]))
    if "VLLM_GPU_MEMORY_UTILIZATION" in values and "VLLM_KV_CACHE_GB" not in values:
        values["VLLM_KV_CACHE_GB"] = "auto"  # as there: what the fraction leaves beside the weights
    names = tuple(name for option, given in options if option == "--served-model-name" for name in given)
    if extra:
        values["VLLM_EXTRA_ARGS"] = shlex.join(extra)
    return Serving(model, values, tuple(left), names, port, True)


def server_words(command: Sequence[str]) -> list[str] | None:
    """The words after `vllm serve`; None where there is no such command. One in a shell's `-c` counts."""
    words = list(command)
    for position, word in enumerate(words):
        if " " in word and ("vllm serve" in word or SERVER_MODULE in word):
            try:
                return server_words(shlex.split(word.replace("\\\n", " ")))
            except ValueError:
                return None
        if word == SERVER_MODULE or (word == "serve" and position and words[position - 1].rsplit("/", 1)[-1] == "vllm"):
            return words[position + 1 :]
    return None


def parse(words: Sequence[str]) -> tuple[str, list[tuple[str, list[str]]]]:
    """The model, where it stands without an option, and the options with their values; words that are neither are EXTRA's."""
    extra: list[str] = []
    options: list[tuple[str, list[str]]] = []
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            name, equals, value = word.partition("=") if not word.startswith("-O") else (word, "", "")
            name = SHORT.get(name, name.replace("_", "-") if name.startswith("--") else name)
            options.append((name, [value] if equals else []))
        elif options and (options[-1][0] in SEVERAL or (not options[-1][1] and not FLAG.fullmatch(options[-1][0]))):
            options[-1][1].append(word)
        else:
            extra.append(word)
    # The first word is the model unless --model names it.
    model = extra.pop(0) if extra and (words[0] == extra[0] or all(name != "--model" for name, _ in options)) else ""
    return model, [*options, *([(EXTRA, extra)] if extra else [])]


def whole(text: str) -> str:
    """4096, 40k or 40K as a whole number; empty for anything else."""
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1)
    try:
        return str(int(float(number) * unit))
    except ValueError:
        return ""
