"""Which files the generation server takes, for a download ahead of it: vLLM's rule, not that of the models served here.

vllm/download.py follows the same rule. It runs in another image, so the two share no code; a test compares them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from embed_service.models.files import INDEX, SINGLE, TEXT_SUFFIXES

PICKLED_INDEX = "pytorch_model.bin.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
VOCABULARY = re.compile(r"tokenizer\.json|tekken\.json|vocab\..+|.+\.(model|tiktoken)")


def choose(names: Iterable[str], shards: Iterable[str] = (), *, code: bool = False) -> list[str]:
    """Configuration, tokenizer and one set of weights, from the repository's root: safetensors, else pickles. Sorted.

    `shards`: the weights that the index names; vLLM reads those and no others. `code`: Python files too.
    """
    root = sorted(name for name in names if "/" not in name)
    safetensors = [name for name in root if name.endswith(".safetensors")]
    indexed = sorted(set(shards))
    if indexed and set(indexed) <= set(safetensors):
        weights = indexed
    elif SINGLE in safetensors:
        weights = [SINGLE]
    else:
        weights = [name for name in safetensors if SHARD.fullmatch(name)] or safetensors
    weights = weights or [name for name in root if name.endswith(".bin") and name.startswith("pytorch_model")]
    suffixes = {*TEXT_SUFFIXES, ".tiktoken", *([".py"] if code else [])}
    return sorted([*weights, *(name for name in root if PurePosixPath(name).suffix in suffixes)])


def is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def suffices(folder: Path, *, code: bool) -> bool:
    """Whether a complete download is all that vLLM needs: it may have been made by another rule, or without the code."""
    names = {path.name for path in folder.glob("*") if path.exists()}
    if not any(VOCABULARY.fullmatch(name) for name in names) or (code and not any(name.endswith(".py") for name in names)):
        return False
    safetensors = any(name.endswith(".safetensors") for name in names)
    shards = shards_of(folder / (INDEX if safetensors else PICKLED_INDEX))
    if shards and SINGLE not in names:
        return set(shards) <= names
    return any(is_weights(name) for name in choose(names))


def shards_of(index: Path) -> list[str]:
    """The weight files that an index names; none where it cannot be read."""
    try:
        return sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def runs_code() -> bool:
    """Whether vLLM is told to run the code of the model's repository (VLLM_EXTRA_ARGS, which the stack hands on under this name)."""
    return "--trust-remote-code" in os.environ.get("QMD_EXTRA_ARGS", "").replace("_", "-").split()
