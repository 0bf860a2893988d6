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

from benchmarks.servers import PEERS

PACKAGES = ("torch", "transformers", "sentence-transformers", "fastapi", "uvicorn")
PEER_PACKAGES = ("infinity-emb", "torch", "transformers", "sentence-transformers")
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
        "versions": {"this service": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "peer_versions": _peer_versions(),
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


def _peer_versions() -> dict[str, str]:
    if not (PEERS / "python").exists():
        return {}
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {PEER_PACKAGES}}}))"
    versions: dict[str, str] = json.loads(
        subprocess.run([PEERS / "python", "-c", code], check=True, capture_output=True, timeout=60).stdout
    )
    return versions
