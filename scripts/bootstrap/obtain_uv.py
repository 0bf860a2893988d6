"""uv for an environment that has no pip, from whatever this machine has.

In this order: a uv on PATH; pip of this Python; ensurepip; the pip wheel of Debian's python3-pip-whl, installed or fetched
by `apt-get download`, which needs no root; the index that pip or uv is configured with, read directly. What is fetched must
have one of the hashes in requirements/bootstrap.txt.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path

from scripts.bootstrap.pip_settings import pip_environment

OLDEST_UV = (0, 7)  # `pip compile --format pylock.toml` and `--torch-backend`
OLDEST_PIP = (22, 3)  # `pip --python`
DEBIAN_WHEELS = "usr/share/python-wheels/pip-*.whl"


class NoInstallerError(Exception):
    """Nothing on this machine can install a Python package. The message says what to do."""


def obtain_uv(python: Path, lock: Path, environment: Mapping[str, str]) -> Path:
    """Path of a uv that works: one on PATH, the one beside `python`, or one installed beside it now.

    `environment` is the process environment with uv's settings filled in (`pip_settings.uv_environment`).
    Raises NoInstallerError, or CalledProcessError when pip was found and failed (it has printed why).
    """
    found = find_uv(python)
    if found:
        return found
    tell("Fetching uv, the installer (about 20 MB).")
    with tempfile.TemporaryDirectory(prefix="qmd-bootstrap-") as scratch:
        pip = find_pip(python, Path(scratch))
        if pip:
            options = ["install", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(lock)]
            subprocess.run([*pip, *options], check=True, env=pip_environment(environment))
        elif not uv_from_index(python.parent / "uv", lock, environment):
            raise NoInstallerError(
                f"{sys.executable} has neither pip nor ensurepip, and there is no uv. Install one of them, on Debian and Ubuntu with: "
                "apt install python3-venv"
            )
    found = find_uv(python)
    if not found:
        raise NoInstallerError(f"uv was installed but does not run beside {python}. Install uv yourself so that it is on PATH.")
    return found


def find_uv(python: Path) -> Path | None:
    """A uv beside `python` or on PATH that is new enough."""
    for candidate in (str(python.parent / "uv"), shutil.which("uv")):
        if not candidate or not os.access(candidate, os.X_OK):
            continue
        answer = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"(\d+)\.(\d+)", answer.stdout)
        if version and (int(version[1]), int(version[2])) >= OLDEST_UV:
            return Path(candidate)
    return None


def find_pip(python: Path, scratch: Path) -> list[str] | None:
    """The start of a command that runs pip for the environment of `python`."""
    if importlib.util.find_spec("pip") and version_of_pip() >= OLDEST_PIP:
        return [sys.executable, "-m", "pip", "--python", str(python)]
    if importlib.util.find_spec("ensurepip"):
        made = subprocess.run([str(python), "-m", "ensurepip"], capture_output=True, check=False)
        if made.returncode == 0:
            return [str(python), "-m", "pip"]
    wheel = newest_wheel(Path("/")) or wheel_from_apt(scratch)
    return [str(python), f"{wheel}/pip"] if wheel else None


def version_of_pip() -> tuple[int, int]:
    try:
        numbers = re.findall(r"\d+", importlib.metadata.version("pip"))
    except importlib.metadata.PackageNotFoundError:
        return (0, 0)
    return int(numbers[0]), int(numbers[1])


def newest_wheel(root: Path) -> Path | None:
    """Debian's pip wheel under `root`."""
    return max(root.glob(DEBIAN_WHEELS), default=None)


def wheel_from_apt(scratch: Path) -> Path | None:
    """Debian's pip wheel, downloaded with apt and unpacked into `scratch`. Needs no root: lists and cache are private."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    private = ["-o", f"Dir::State::lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache", "-o", "APT::Sandbox::User="]
    download = ["download", "python3-pip-whl"]
    # First with the lists that the system has, then with lists of our own.
    for commands in ([download], [[*private, "update"], [*private, *download]]):
        if all(quiet(["apt-get", "-qq", *command], scratch) for command in commands):
            for package in scratch.glob("python3-pip-whl_*.deb"):
                if quiet(["dpkg-deb", "-x", package.name, "."], scratch):
                    return newest_wheel(scratch)
    return None


def quiet(command: list[str], folder: Path) -> bool:
    """Whether `command` succeeded in `folder`."""
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def uv_from_index(target: Path, lock: Path, environment: Mapping[str, str]) -> bool:
    """Take uv out of its wheel on the configured index and write it to `target`; False where no index is configured or has it."""
    index = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL")
    system = {"linux": "manylinux", "darwin": "macosx"}.get(sys.platform)
    if not index or not system:
        return False
    text = lock.read_text(encoding="utf-8")
    hashes = set(re.findall(r"sha256:([0-9a-f]{64})", text))
    version = re.search(r"^uv==(\S+)", text, re.MULTILINE)
    assert version is not None
    page_url = f"{index.rstrip('/')}/uv/"
    try:
        page = fetch(page_url).decode()
        for link in re.findall(r'href="([^"]+)"', page):
            name = urllib.parse.unquote(urllib.parse.urlsplit(link).path.rsplit("/", 1)[-1])
            if not (name.startswith(f"uv-{version[1]}-py3-none-{system}") and name.endswith(f"{platform.machine().lower()}.whl")):
                continue
            wheel = fetch(with_login(urllib.parse.urljoin(page_url, link), page_url))
            if hashlib.sha256(wheel).hexdigest() in hashes:
                return unpack_uv(wheel, target)
    except (urllib.error.URLError, OSError) as error:
        tell(f"The package index that pip is configured with does not answer: {error}")
    return False


def unpack_uv(wheel: bytes, target: Path) -> bool:
    with tempfile.TemporaryFile() as file:
        file.write(wheel)
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if name.endswith(".data/scripts/uv"):
                    target.write_bytes(archive.read(name))
                    target.chmod(0o755)
                    return True
    return False


def with_login(url: str, page_url: str) -> str:
    """`url` with the user and password of `page_url` where both are on one host."""
    parts, page = urllib.parse.urlsplit(url), urllib.parse.urlsplit(page_url)
    if "@" in page.netloc and page.netloc.rpartition("@")[2] == parts.netloc:
        return parts._replace(netloc=page.netloc).geturl()
    return url


def fetch(url: str) -> bytes:
    """The body at `url`; a user and password in it are sent as basic authentication."""
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers={"Accept": "text/html"})
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(urllib.parse.unquote(login).encode()).decode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
