"""How qmdctl speaks to the service's control, on the real service; only the container around it is left out."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from qmdctl.commands.pause import free_on
from qmdctl.commands.resume import load_embed
from qmdctl.control import control, phase_of_line
from qmdctl.errors import MissingError, QmdError, WaitTimeoutError
from qmdctl.hardware import MIB
from qmdctl.inside import Unknown
from qmdctl.probes import Broken, Probe
from qmdctl.startup.causes import cause_of
from qmdctl.startup.display import PlainDisplay
from qmdctl.startup.estimate import Estimate
from qmdctl.startup.phases import phase_of
from qmdctl.terminal import Terminal
from tests.qmdctl.catalogs import Local
from tests.qmdctl.containers import container
from tests.qmdctl.machines import SPARK, card, machine
from tests.qmdctl.projects import settings_of
from tests.support.service import ServiceProcess, poll

LONG = 300.0  # seconds, on a machine that does much else

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    folder = tmp_path_factory.mktemp("pause")
    with ServiceProcess({"CONTROL_SOCKET": str(folder / "c" / "s"), "LOAD_WAIT_SECONDS": "0.2"}, folder / "service.log") as service:
        service.wait_healthy(LONG)
        yield service


@pytest.fixture
def embed(box: ServiceProcess) -> Local:
    return Local(box.environment)


def health(box: ServiceProcess) -> str:
    return str(box.health()[1]["status"])


def test_pause_and_resume_with_the_display_of_a_start(box: ServiceProcess, embed: Local) -> None:
    with httpx.Client(trust_env=False) as client:
        pause_and_resume(box, embed, Probe("embed", box.url, client=client))


def pause_and_resume(box: ServiceProcess, embed: Local, probe: Probe) -> None:
    assert control(embed, "pause")["state"] == "paused"
    assert health(box) == "paused"
    with pytest.raises(Broken, match="paused") as broken:
        probe.health()
    assert broken.value.fix == "qmdctl resume embed"
    assert httpx.post(f"{box.url}/v1/embeddings", json={"input": "a"}, timeout=10).status_code == 503

    said = io.StringIO()
    with redirect_stderr(said):
        load_embed(embed, PlainDisplay(Terminal(), Estimate({})), None)
    assert health(box) == "ok"
    assert re.search(r"embed: (starting|loading weights)", said.getvalue())
    assert probe.health() == "200"
    assert httpx.post(f"{box.url}/v1/embeddings", json={"input": "a"}, timeout=LONG).status_code == 200


def test_ctrl_c_in_a_resume_goes_on_loading(box: ServiceProcess, embed: Local) -> None:
    control(embed, "pause")

    def interrupt(line: dict[str, object]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        control(embed, "resume", on_line=interrupt)
    poll(lambda: health(box) == "ok", LONG, "the models")


def test_what_was_not_done_has_its_kind(box: ServiceProcess, embed: Local) -> None:
    with pytest.raises(QmdError, match="no/such/folder") as refused:
        control(embed, "switch", "--rerank-model", "/no/such/folder")
    assert (type(refused.value), health(box)) == (QmdError, "ok")
    control(embed, "pause")
    with pytest.raises(WaitTimeoutError):
        control(embed, "resume", "--timeout", "0.001")
    assert control(embed, "resume")["done"] is True
    with pytest.raises(Unknown, match="older than this qmdctl"):
        control(embed, "pause", "--sooner")
    with pytest.raises(MissingError, match="CONTROL_SOCKET=/nowhere/s"):
        control(Local({**box.environment, "CONTROL_SOCKET": "/nowhere/s"}), "pause")


@pytest.mark.parametrize(
    ("state", "probe", "phase", "ready", "fix"),
    [
        ("running", {"status": "paused", "phase": "paused"}, "paused", False, "qmdctl resume embed"),
        ("paused", {}, "paused", False, "docker unpause qmd-embed"),
        ("running", {"status": "idle", "phase": "idle"}, "idle", True, ""),
    ],
)
def test_a_paused_service_and_an_idle_one(state: str, probe: dict[str, str], phase: str, ready: bool, fix: str) -> None:
    seen = replace(container(state=state, health="healthy"), probe=probe)
    found = phase_of(seen)
    assert (found.name, found.ready) == (phase, ready)
    if fix:
        assert cause_of(seen, found, []).fix == fix


def test_the_memory_told_is_that_of_the_cards_that_are_freed(tmp_path: Path) -> None:
    two = machine(tmp_path, card("NVIDIA GeForce RTX 4090", 24564, free=1000), card("NVIDIA GeForce RTX 3090", 24576, index=1, free=500))
    apart = settings_of(tmp_path, {"EMBED_GPU": "0", "VLLM_GPU": "GPU-00000001-0000-0000-0000-000000000000"})
    assert [free_on(two, apart, names) for names in (["embed"], ["vllm"], ["embed", "vllm"])] == [1000 * MIB, 500 * MIB, 1500 * MIB]
    together = settings_of(tmp_path, {"EMBED_GPU": "1", "VLLM_GPU": "1"})
    assert free_on(two, together, ["embed", "vllm"]) == 500 * MIB
    # What has no memory of its own, or is not there: the machine's.
    spark = machine(tmp_path, SPARK, total_gib=121.7, available_gib=31)
    assert free_on(spark, settings_of(tmp_path), ["vllm"]) == spark.available_bytes
    assert free_on(two, settings_of(tmp_path, {"VLLM_GPU": "7"}), ["vllm"]) == two.available_bytes
    assert free_on(machine(tmp_path, available_gib=5), settings_of(tmp_path), ["embed"]) == 5 << 30


def test_lines_of_control() -> None:
    assert phase_of_line({"phase": "canary"}).name == "warming"
    assert phase_of_line({"phase": "going_back"}).name == "starting"
    assert phase_of_line({"phase": "downloading", "done_bytes": 5, "total_bytes": 10}).text == "downloading 5 B of 10 B"
