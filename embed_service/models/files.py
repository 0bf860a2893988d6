"""Which files of a repository are wanted, and whether a folder holds them all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
MODULE_FOLDER = re.compile(r"\d+_\w+")  # sentence-transformers numbers its modules: 1_Pooling, 2_Dense
TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def choose(names: Iterable[str]) -> list[str]:
    """The files that serving takes, sorted: weights in safetensors, JSON, tokenizer files, sentence-transformers' module folders.

    Never pickles (*.bin, *.pt), code (*.py) or other runtimes' copies (onnx/, openvino/). Of several sets of weights the one that
    transformers prefers: model.safetensors, else the shards of the index.
    """
    present = set(names)
    return sorted(name for name in present if _wanted(PurePosixPath(name), present))


def _wanted(path: PurePosixPath, present: set[str]) -> bool:
    if len(path.parts) > 2 or (len(path.parts) == 2 and not MODULE_FOLDER.fullmatch(path.parts[0])):
        return False
    if path.suffix == ".safetensors":
        folder = "" if len(path.parts) == 1 else f"{path.parts[0]}/"
        if f"{folder}{SINGLE}" in present:
            return path.name == SINGLE
        return f"{folder}{INDEX}" in present and SHARD.fullmatch(path.name) is not None
    return path.suffix in TEXT_SUFFIXES


def has_weights(names: Iterable[str]) -> bool:
    """Whether the chosen files hold the model's own weights (at the root, or in module 0)."""
    return any(
        PurePosixPath(name).suffix == ".safetensors" and (len(PurePosixPath(name).parts) == 1 or name.startswith("0_")) for name in names
    )


def list_folder(folder: Path) -> list[str]:
    """Names of the files at the root of `folder` and one level below, as a repository names them."""
    return sorted(
        p.relative_to(folder).as_posix() for pattern in ("*", "*/*") for p in folder.glob(pattern) if p.is_file() and ".git" not in p.parts
    )


def missing_from(folder: Path) -> list[str]:
    """What a folder without a recorded file list visibly lacks: configuration, tokenizer, shards of its index, module folders."""
    present = set(choose(list_folder(folder)))
    missing = [] if "config.json" in present else ["config.json"]
    if not any("tokenizer" in name or name in ("vocab.txt", "vocab.json") for name in present):
        missing.append("tokenizer.json")
    if SINGLE not in present and INDEX in present:
        shards = _json(folder / INDEX).get("weight_map", {}).values()
        missing += sorted(set(shards) - present)
    elif not has_weights(present):
        missing.append(SINGLE)
    if "modules.json" in present:
        modules = _json(folder / "modules.json")
        needed = [f"{m['path']}/config.json" for m in modules if m.get("path") and not str(m.get("type", "")).endswith("Normalize")]
        missing += [name for name in needed if name not in present]
    return missing


def lacks_modules(folder: Path, names: Iterable[str]) -> bool:
    """Whether `names` leave out a module folder that modules.json lists: a download for another use had no need of its pooling."""
    modules = _json(folder / "modules.json")
    present = {PurePosixPath(name).parts[0] for name in names if "/" in name}
    wanted = [str(m.get("path", "")) for m in modules if isinstance(m, dict) and not str(m.get("type", "")).endswith("Normalize")]
    return any(MODULE_FOLDER.fullmatch(path) and path not in present for path in wanted)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
