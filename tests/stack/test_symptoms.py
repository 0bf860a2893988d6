"""Known symptoms, provoked for real: Docker, Compose, a registry and vLLM say what they say, and the table knows it.

FAKE: the hub that refuses a gated model, and a disk that is full (a few MB of tmpfs, so full it is).
"""

from __future__ import annotations

import os
import socket
import subprocess
import uuid
from pathlib import Path

import pytest

from qmdctl.symptoms import match
from tests.stack.conftest import SecondEngine
from tests.support.hub import FakeHub
from tests.support.qmdctl_cli import DOCKER_HOST
from tests.support.registry import Registry
from tests.support.service import ROOT
from tests.support.stack_images import BASE_IMAGE, need_engine, vllm_image

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def _engine() -> None:
    need_engine()


def said(*command: str, host: str = DOCKER_HOST, **options: object) -> list[str]:
    """The lines of a docker command that fails."""
    done = subprocess.run(
        ["docker", "--host", host, *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode != 0, done.stdout
    return [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]


def name_of(service: str, lines: list[str]) -> str:
    found = match(service, lines, {"VLLM_IMAGE": "the image"})
    assert found is not None, lines
    return found.name


def compose_file(folder: Path, service: str) -> list[str]:
    """Arguments that start a project with this one service."""
    (folder / "compose.yaml").write_text(f"services:\n  x:\n    image: {BASE_IMAGE}\n    command: sleep 60\n    {service}\n")
    return ["compose", "--project-directory", str(folder), "--project-name", f"qmdsym{uuid.uuid4().hex[:8]}"]


def test_docker_permission(tmp_path: Path) -> None:
    """Row 9: another user on the engine's socket, which belongs to root."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*nobody, "docker", "--host", DOCKER_HOST, "ps"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/tmp"},
    )
    assert name_of("compose", done.stderr.splitlines()) == "docker_permission"


def test_docker_absent(tmp_path: Path) -> None:
    assert name_of("compose", said("ps", host=f"unix://{tmp_path}/no.sock")) == "docker_absent"


def test_no_nvidia_runtime_and_disk_full(second_engine: SecondEngine) -> None:
    """Rows 7 and 14: one engine serves both. The image is 169 MB, the disk 24."""
    with subprocess.Popen(["docker", "--host", DOCKER_HOST, "save", BASE_IMAGE], stdout=subprocess.PIPE) as save:
        assert name_of("compose", said("load", host=second_engine.host, stdin=save.stdout)) == "disk_full"
    # An image of nothing fits.
    done = subprocess.run(
        ["docker", "--host", second_engine.host, "import", "-", "small:1"], input=b"\0" * 10240, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert name_of("compose", said("run", "--rm", "--gpus", "all", "small:1", "true", host=second_engine.host)) == "no_nvidia_runtime"


def test_port_taken(tmp_path: Path) -> None:
    """Row 10: by a program of the host, then by another container."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        project = compose_file(tmp_path, f'ports: ["127.0.0.1:{port}:80"]')
        lines = said(*project, "up", "--detach")
        subprocess.run(["docker", "--host", DOCKER_HOST, *project, "down"], capture_output=True, check=False)
    found = match("compose", lines, {})
    assert found is not None
    assert (found.name, str(port) in found.cause) == ("port_taken", True), lines


def test_name_taken(tmp_path: Path) -> None:
    name = f"qmdsym{uuid.uuid4().hex[:8]}"
    subprocess.run(["docker", "--host", DOCKER_HOST, "create", "--name", name, BASE_IMAGE, "true"], capture_output=True, check=True)
    project = compose_file(tmp_path, f"container_name: {name}")
    try:
        assert name_of("compose", said(*project, "up", "--detach")) == "name_taken"
    finally:
        subprocess.run(["docker", "--host", DOCKER_HOST, *project, "down"], capture_output=True, check=False)
        subprocess.run(["docker", "--host", DOCKER_HOST, "rm", "--force", name], capture_output=True, check=False)


def test_no_network() -> None:
    """A registry's name that nothing resolves."""
    assert name_of("compose", said("pull", "registry.invalid/vllm:1")) == "no_network"


def test_registry_denied(tmp_path: Path) -> None:
    """Row 14: a registry that wants a password which nobody gave."""
    with Registry(tmp_path, closed=True) as registry:
        assert name_of("compose", said("pull", f"{registry.address}/vllm:1")) == "registry_denied"


def vllm(*arguments: str, folder: Path | None = None, environment: dict[str, str] | None = None, user: str = "1000") -> list[str]:
    """The log of vLLM 0.12's own program, which fails."""
    mount = ["--volume", f"{folder}:/model:ro"] if folder else []
    variables = [part for name, value in (environment or {}).items() for part in ("--env", f"{name}={value}")]
    options = ["--rm", "--user", user, "--env", "HOME=/tmp", "--env", "USER=qmd", "--env", "HF_HUB_OFFLINE=1", *variables, *mount]
    return said("run", *options, "--entrypoint", "vllm", vllm_image("0.12"), "serve", *arguments)


def test_unknown_option() -> None:
    """Row 12."""
    lines = vllm("/model", "--default-chat-template-kwargs", "{}")
    found = match("vllm", lines, {})
    assert found is not None
    assert found.name == "unknown_option"
    assert "--default-chat-template-kwargs" in found.cause


@pytest.mark.slow
def test_too_long_and_unknown_architecture(tmp_path: Path) -> None:
    from demo import smollm2

    assert name_of("vllm", vllm("/model", "--max-model-len", "999999", folder=smollm2.prepare())) == "too_long"
    (tmp_path / "config.json").write_text('{"model_type": "none_such", "architectures": ["NoneSuchForCausalLM"]}')
    tmp_path.chmod(0o755)
    assert name_of("vllm", vllm("/model", folder=tmp_path)) == "unknown_architecture"


def test_gated_model_and_cache_permission(tmp_path: Path, minilm: str) -> None:
    """Row 3: the start script's own download, from a FAKE hub that wants a token; then a cache that belongs to somebody else."""
    bridge = subprocess.run(
        ["docker", "--host", DOCKER_HOST, "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    with FakeHub(bridge) as hub:
        hub.add("org/gated", Path(minilm), gated=True)
        hub.add("org/open", Path(minilm))
        assert name_of("vllm", start_download(hub, "org/gated", "1777")) == "gated_model"
        assert name_of("vllm", start_download(hub, "org/open", "0755")) == "cache_permission"


def start_download(hub: FakeHub, model: str, mode: str) -> list[str]:
    """`start.py download` in the vLLM image, its cache a tmpfs of root's with this mode."""
    variables = {"QMD_MODEL": model, "HF_ENDPOINT": hub.url, "HF_HOME": "/models", "HOME": "/tmp"}
    options = [part for name, value in variables.items() for part in ("--env", f"{name}={value}")]
    mounts = ["--volume", f"{ROOT}/vllm:/qmd:ro", "--tmpfs", f"/models:mode={mode}"]
    return said(
        "run", "--rm", "--user", "1000", *options, *mounts, "--entrypoint", "python3", vllm_image("0.12"), "/qmd/start.py", "download"
    )
