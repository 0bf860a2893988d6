"""`python3 -m scripts.ray_packages`: what ENGINES=ray needs, added to the `.venv` of the service. For the image's variant `ray`."""

from __future__ import annotations

import os
import sys

from scripts.bootstrap.environment import REQUIREMENTS, ROOT, Level, install, stamp_of, torch_backend
from scripts.bootstrap.obtain_uv import obtain_uv
from scripts.bootstrap.pip_settings import uv_environment


def main() -> int:
    folder = ROOT / ".venv"
    python = folder / "bin/python"
    environment = uv_environment(os.environ)
    environment.pop("UV_TORCH_BACKEND", None)
    uv = obtain_uv(python, REQUIREMENTS / "bootstrap.txt", environment)
    install(Level(".venv", ("ray.txt",), project=False), torch_backend(stamp_of(folder)), uv, python, environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
