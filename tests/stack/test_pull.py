"""`qmdctl pull`: from a real registry (Debian's docker-registry) and a FAKE hub, into the engine and the stack's volume."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.stack.conftest import SecondEngine
from tests.support.hub import FakeHub
from tests.support.qmdctl_cli import DockerError, Ran, docker
from tests.support.registry import Registry
from tests.support.service import minilm_path, poll
from tests.support.stack_images import BASE_IMAGE, EMBED_IMAGE, embed_image, need_engine
from tests.support.stack_project import Stack, bridge_address, make_project

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
EMBED_MODEL, VLLM_MODEL = "sentence-transformers/all-MiniLM-L6-v2", "org/generator"
VOLUME = "qmdpull_models"
LAYER_BYTES = 3_000_000


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Holds vllm:1, an image of one incompressible layer, and base:1, on which the embed image can be built."""
    need_engine()
    embed_image()
    folder = tmp_path_factory.mktemp("registry")
    (folder / "layer").write_bytes(np.random.default_rng(1).bytes(LAYER_BYTES))
    (folder / "Dockerfile").write_text('FROM scratch\nCOPY layer /layer\nCMD ["x"]\n')
    with Registry(folder / "registry") as running:
        docker("build", "--quiet", "--tag", f"{running.address}/vllm:1", str(folder))
        docker("push", "--quiet", f"{running.address}/vllm:1")
        base = f"{running.address}/base:1"
        docker("tag", BASE_IMAGE, base)
        docker("push", "--quiet", base)
        docker("rmi", base)
        yield running


@pytest.fixture
def stack(registry: Registry, tmp_path: Path) -> Iterator[Stack]:
    docker("rmi", "--force", f"{registry.address}/vllm:1")
    generator = tmp_path / "generator"
    generator.mkdir()
    (generator / "config.json").write_text("{}")
    (generator / "tokenizer.json").write_text("{}")
    save_file({"weight": np.zeros(1_000_000, np.float32)}, generator / "model.safetensors")
    with FakeHub(bridge_address()) as hub:
        hub.add(EMBED_MODEL, Path(minilm_path()))
        hub.add(VLLM_MODEL, generator)
        values = {
            "COMPOSE_PROJECT_NAME": "qmdpull",
            "EMBED_MODEL": EMBED_MODEL,
            "RERANK_MODEL": EMBED_MODEL,
            "VLLM_MODEL": VLLM_MODEL,
            "VLLM_IMAGE": f"{registry.address}/vllm:1",
            "HF_ENDPOINT": hub.url,
        }
        running = Stack(make_project(tmp_path / "project", tmp_path, values), hub)
        running.close("qmdpull")  # what a run that was cut off left would count as downloaded
        yield running
        running.close("qmdpull")


def in_volume(program: str, *arguments: str) -> str:
    """What a program of the embed image says of the volume with the models."""
    return docker("run", "--rm", "--volume", f"{VOLUME}:/models", "--entrypoint", program, EMBED_IMAGE, *arguments)


def test_images_and_weights_the_total_first(stack: Stack, registry: Registry) -> None:
    done = stack.qmdctl.run("pull", "--json")
    assert done.status == 0, done.err
    answer = done.json
    image = f"{registry.address}/vllm:1"
    assert answer["pulled"] == [image]
    assert LAYER_BYTES <= answer["planned"]["bytes"][f"image {image}"] < 1.1 * LAYER_BYTES
    assert answer["planned"]["bytes"][f"weights {VLLM_MODEL}"] > 4_000_000
    assert {line["model"] for line in answer["models"]} == {EMBED_MODEL, VLLM_MODEL}
    assert docker("images", "--quiet", image)
    assert done.err.index("at most, less what the cache has") < done.err.index(f"image {image} complete")
    assert f"weights {VLLM_MODEL} complete" in done.err
    record = in_volume("cat", "/models/hub/embed-service-revisions.json")
    assert set(json.loads(record)) == {EMBED_MODEL, VLLM_MODEL}
    stack.hub.close()
    again = stack.qmdctl.run("pull", "--json")
    assert again.status == 0, again.err
    assert again.json["pulled"] == []


@pytest.mark.parametrize(
    ("image", "status", "words"),
    [("vllm:2", 3, "There is no image"), ("nothing:1", 3, "There is no image")],
)
def test_an_image_that_is_not_there(stack: Stack, registry: Registry, image: str, status: int, words: str) -> None:
    """symptoms.yaml: image_missing."""
    stack.qmdctl.set(VLLM_IMAGE=f"{registry.address}/{image}")
    done = stack.qmdctl.run("pull")
    assert done.status == status, done.err
    assert words in done.err
    assert "correct VLLM_IMAGE in .env" in done.err
    assert f"weights {VLLM_MODEL} complete" in done.err, "the weights are fetched all the same"


def test_a_registry_that_wants_a_password(stack: Stack, tmp_path: Path) -> None:
    with Registry(tmp_path / "closed", closed=True) as closed:
        stack.qmdctl.set(VLLM_IMAGE=f"{closed.address}/vllm:1")
        done = stack.qmdctl.run("pull")
    assert done.status == 3, done.err
    assert "refuses to give it out" in done.err
    assert "docker login" in done.err


def test_a_model_that_the_hub_does_not_know(stack: Stack) -> None:
    stack.qmdctl.set(VLLM_MODEL="no/such")
    done = stack.qmdctl.run("pull")
    assert done.status == 1, done.err
    assert "VLLM_MODEL=no/such" in done.err
    assert f"weights {EMBED_MODEL} complete" in done.err


def in_models() -> int:
    """Bytes in the volume; 0 without one, and while it is being written to in such a way that they cannot be counted."""
    if not docker("volume", "ls", "--quiet", "--filter", f"name={VOLUME}"):
        return 0  # `docker run` would make one, which Compose does not know
    try:
        return int(in_volume("du", "-sb", "/models").split()[0])
    except DockerError:
        return 0


def test_ctrl_c_keeps_what_is_downloaded_and_the_next_pull_goes_on(stack: Stack) -> None:
    stack.hub.bytes_per_second = 1e6  # MiniLM takes about 90 s
    with stack.qmdctl.start("pull", start_new_session=True) as process:
        poll(lambda: in_models() > 5_000_000, 90, "some megabytes", 0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "What is downloaded is kept" in err
    assert "qmdctl pull goes on" in err
    poll(lambda: not docker("ps", "--quiet", "--filter", "label=com.docker.compose.project=qmdpull"), 15, "the downloader to end", 0.5)
    before = in_models()
    assert 5_000_000 < before < 60_000_000, "it was stopped, not let go on to its end"
    stack.hub.bytes_per_second = None
    done = stack.qmdctl.run("pull", "--json")
    assert done.status == 0, done.err


def test_after_a_pull_a_start_needs_no_network(stack: Stack, registry: Registry) -> None:
    """A build asks the registry for a base image that only the build cache has: a pull keeps it, and without it the built image does."""
    base = f"{registry.address}/base:1"
    stack.qmdctl.set(COMPOSE_PROFILES="", EMBED_BASE_IMAGE=base)
    done = stack.qmdctl.run("pull", "--json")
    assert done.status == 0, done.err
    assert done.json["planned"]["images"] == {"base": base}
    stack.hub.close()
    with registry.away():
        done = stack.qmdctl.run("up", "--skip-checks", "--json")
        assert (done.status, done.json["status"]) == (0, "ready"), done.err
        assert "as it is" not in done.err
        assert stack.qmdctl.run("down").status == 0
        docker("rmi", base)
        done = stack.qmdctl.run("up", "--skip-checks", "--json")
        assert (done.status, done.json["status"]) == (0, "ready"), done.err
        assert "The embed image that is here is used as it is." in done.err
        stack.qmdctl.set(EMBED_IMAGE="qmd-test/embed:none")
        done = stack.qmdctl.run("up", "--skip-checks")
        assert done.status == 3, done.err
        assert "A download did not reach its server." in done.err


def test_a_disk_that_becomes_full_with_an_image(stack: Stack, registry: Registry, second_engine: SecondEngine) -> None:
    """The image is 169 MB, the engine's disk 24."""
    with Registry(registry.folder, beside=second_engine.pid) as near:
        stack.qmdctl.set(VLLM_IMAGE=f"{near.address}/base:1", EMBED_BASE_IMAGE=f"{near.address}/base:1")
        done = stack.qmdctl.run("pull", env={"DOCKER_HOST": second_engine.host})
    assert done.status == 3, done.err
    assert f"{near.address}/base:1: The disk is full." in done.err
    assert "docker system df" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("full_before", [True, False])
def test_a_disk_that_is_too_small_for_weights(stack: Stack, small_disk: Path, full_before: bool) -> None:
    """org/generator is 4 MB: 1 MB free before the first byte, or from the middle of the download on."""
    filler = small_disk / "filler"
    stack.qmdctl.set(COMPOSE_PROFILES="generation", EMBED_MODEL=VLLM_MODEL, RERANK_MODEL=VLLM_MODEL, HF_CACHE_DIR=str(small_disk))
    if full_before:
        filler.write_bytes(bytes(23_000_000))
        done = stack.qmdctl.run("pull")
    else:
        stack.hub.bytes_per_second = 4e5
        with stack.qmdctl.start("pull") as process:
            poll(lambda: sum(path.stat().st_size for path in small_disk.rglob("*.incomplete")) > 500_000, 60, "half a megabyte", 0.2)
            with contextlib.suppress(OSError):
                filler.write_bytes(bytes(24_000_000))
            out, err = process.communicate(timeout=60)
        done = Ran(process.returncode, out, err)
    assert done.status == 1, done.err
    assert re.search("on the disk and .* are free|became full", done.err), done.err
    assert "qmdctl pull" in done.err
    filler.unlink()
    stack.hub.bytes_per_second = None
    again = stack.qmdctl.run("pull")
    assert again.status == 0, again.err
