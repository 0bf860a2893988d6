"""The watch over a start ends when it should, with the right sentence. Time is counted, not waited for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from qmdctl.engine import Container
from qmdctl.errors import MissingError, WaitTimeoutError
from qmdctl.startup.causes import StartFailed
from qmdctl.startup.estimate import Progress
from qmdctl.startup.phases import Phase
from qmdctl.startup.watch import ENGINE_AWAY_SECONDS, POLL_SECONDS, Start, Watch
from qmdctl.tailnet import SIDECARS
from tests.qmdctl.containers import STARTED, container, probing

AWAY: list[Container] = [container("no engine")]


class Scripted:
    """FAKE engine: at each look it shows the next set of containers; the last one stays. Its clock moves only by sleep."""

    def __init__(self, *looks: list[Container], log: tuple[str, ...] = ()) -> None:
        self.looks, self.lines, self.now, self.number = looks, list(log), 0.0, 0
        self.shown: list[dict[str, Progress]] = []
        self.asked: list[tuple[str, str]] = []

    def containers(self, project: str) -> dict[str, Container]:
        look = self.looks[min(self.number, len(self.looks) - 1)]
        self.number += 1
        if look == AWAY:
            raise MissingError("The engine does not answer.")
        return {one.service: one for one in look}

    def log(self, container: Container, whole: bool) -> list[str]:
        return self.lines

    def inside(self, container: Container) -> Phase | None:
        """What a look's sidecar says of itself stands in its probe."""
        return Phase(container.probe["phase"], container.probe.get("link", "")) if container.service in SIDECARS else None

    def ask_login(self, service: str, link: str) -> None:
        self.asked.append((service, link))

    def show(self, progress: Mapping[str, Progress], seconds: float) -> None:
        self.shown.append(dict(progress))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.number > 10_000:
            raise AssertionError("the watch does not end")

    def run(self, *services: str, timeout_seconds: float | None = None) -> Start:
        watch = Watch(self, "qmd", services or ("embed",), self, clock=lambda: self.now, sleep=self.sleep, began=STARTED - timedelta(1))
        return watch.run(timeout_seconds)


READY = container(health="healthy")


def test_seconds_per_phase_of_a_complete_start() -> None:
    loading, warming = probing(phase="loading"), probing(phase="warming")
    start = Scripted([], [container()], *[[loading]] * 4, [warming], [READY]).run()
    assert start.phases == {"embed": {"starting": 0.5, "loading": 2.0, "warming": 0.5}}
    assert start.total_seconds == 7 * POLL_SECONDS
    assert start.fresh == {"embed"}


def test_a_container_that_is_taken_away_ends_the_watch() -> None:
    with pytest.raises(StartFailed, match="its container is gone"):
        Scripted([container()], []).run()
    with pytest.raises(StartFailed, match="its container is gone"):
        Scripted([]).run()


def test_an_engine_that_is_away_for_a_while_is_waited_for() -> None:
    scripted = Scripted([container()], *[AWAY] * 20, [READY])
    assert scripted.run().total_seconds > 20 * POLL_SECONDS
    gone = Scripted([container()], AWAY)
    with pytest.raises(MissingError):
        gone.run()
    assert gone.now == pytest.approx(ENGINE_AWAY_SECONDS, abs=2)


def test_all_services_must_be_ready() -> None:
    slow = probing("vllm", phase="waiting")
    scripted = Scripted(*[[READY, slow]] * 5, [READY, container("vllm", health="healthy")])
    assert scripted.run("embed", "vllm").phases["vllm"] == {"waiting": 2.5}


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (container(state="exited", health="", exit_code=3), "the container ended (exit status 3)"),
        (container(state="exited", health="", exit_code=137, oom_killed=True), "killed by the kernel for want of memory"),
        (container(health="unhealthy", probe_text="connection refused"), "unhealthy: connection refused"),
        (container(probe={"status": "error", "error": "Model x/y is not at the hub"}), "Model x/y is not at the hub"),
        (container(state="paused"), "paused"),
    ],
)
def test_a_service_that_cannot_become_ready_ends_the_watch_at_once(last: Container, words: str) -> None:
    scripted = Scripted([probing(phase="loading")], [last], log=("first", "last words"))
    with pytest.raises(StartFailed, match=r"^embed: ") as failure:
        scripted.run()
    assert words in failure.value.message
    assert failure.value.fix
    assert failure.value.exit_code == 1
    assert scripted.number == 2


def test_the_last_lines_of_the_log_are_shown() -> None:
    with pytest.raises(StartFailed) as failure:
        Scripted([container(state="exited", health="", exit_code=3)], log=tuple(f"line {n}" for n in range(50))).run()
    assert failure.value.details.splitlines()[-1] == "  line 49"
    assert len(failure.value.details.splitlines()) == 12


def test_an_unhealthy_service_that_only_loads_is_a_symptom_of_its_own() -> None:
    loading = ("Loading safetensors checkpoint shards:  50% Completed",)
    with pytest.raises(StartFailed, match=r"^vllm: vLLM is still starting") as failure:
        Scripted([container("vllm", health="unhealthy")], log=loading).run("vllm")
    assert "compose.override.yaml" in failure.value.fix


def test_the_fix_of_the_service_itself_is_taken() -> None:
    probe = {"status": "error", "error": "the hub refuses x/y; fix: set HF_TOKEN_FILE"}
    with pytest.raises(StartFailed) as failure:
        Scripted([container("vllm", probe=probe)]).run("vllm")
    assert (failure.value.message, failure.value.fix) == ("vllm: the hub refuses x/y", "set HF_TOKEN_FILE")


def test_one_restart_is_no_loop_and_is_counted() -> None:
    again = probing(phase="loading")
    once = container(restart_count=1)
    start = Scripted([again], [container(state="restarting", exit_code=137)], [once], [container(health="healthy", restart_count=1)]).run()
    assert start.restarted == {"embed": 1}
    assert start.fresh == frozenset()


def test_two_restarts_are_a_loop() -> None:
    looks = [[container(restart_count=count, exit_code=1)] for count in (4, 5, 6)]
    with pytest.raises(StartFailed, match="ends again and again"):
        Scripted(*looks).run()


def test_a_loop_that_began_before_is_seen_at_once() -> None:
    with pytest.raises(StartFailed, match="ends again and again"):
        Scripted([container(state="restarting", restart_count=7, exit_code=1)]).run()


def test_old_restarts_of_a_container_that_runs_are_none_of_ours() -> None:
    assert Scripted([container(restart_count=9)], [container(health="healthy", restart_count=9)]).run().restarted == {}


def test_a_stalled_download_is_waited_for() -> None:
    stalled = probing(phase="downloading", done_bytes=5, total_bytes=10, stalled_seconds=4000)
    scripted = Scripted(*[[stalled]] * 2000, [READY])
    assert scripted.run().phases["embed"]["downloading"] == pytest.approx(1000)
    assert scripted.shown[5]["embed"].phase.stalled


def test_the_rate_of_a_download() -> None:
    looks = [[probing(phase="downloading", done_bytes=10_000_000 * (n // 2), total_bytes=10**9)] for n in range(20)]
    scripted = Scripted(*looks, [READY])
    scripted.run()
    assert scripted.shown[19]["embed"].rate == pytest.approx(10_000_000)
    assert scripted.shown[0]["embed"].rate == 0


def test_a_timeout_names_the_phases_and_the_command_that_waits_twice_as_long() -> None:
    download = probing(phase="downloading", done_bytes=10**9, total_bytes=8 * 10**9)
    with pytest.raises(WaitTimeoutError) as failure:
        Scripted([download, probing("vllm", phase="waiting")]).run("embed", "vllm", timeout_seconds=30)
    assert failure.value.exit_code == 4
    assert failure.value.message.startswith("Not ready after 30 s: embed is downloading 1.0 GB of 8.0 GB; vllm is waiting for embed.")
    assert "qmdctl up --timeout 60" in failure.value.fix
    assert "qmdctl logs vllm" in failure.value.fix


def test_a_container_that_ran_before_is_no_measure_of_a_start() -> None:
    before = container(health="healthy", started_at=STARTED - timedelta(days=2))
    assert Scripted([before]).run().fresh == frozenset()


def sidecar(phase: str, link: str = "", service: str = "ts-embed", **fields: Any) -> Container:
    return probing(service, phase=phase, link=link, **fields) if not fields else container(service, probe={"phase": phase}, **fields)


LINK, NEWER = "https://login.example/a/1", "https://login.example/a/2"


def test_a_login_link_is_shown_once_and_a_new_one_again() -> None:
    script = Scripted([sidecar("login", LINK)], [sidecar("login", LINK)], [sidecar("login", NEWER)], [sidecar("ready")])
    script.run("ts-embed")
    assert script.asked == [("ts-embed", LINK), ("ts-embed", NEWER)]


def test_a_sidecar_that_nobody_logs_in_begins_anew_and_that_is_no_loop() -> None:
    """containerboot gives up after TS_BOOT_TIMEOUT, and Docker starts it again: the second time is not a crash."""
    looks = []
    for count in range(4):
        looks += [[sidecar("login", f"{LINK}{count}")], [sidecar("connecting", restart_count=count + 1)]]
    script = Scripted(*looks, [sidecar("ready", restart_count=4)])
    assert script.run("ts-embed").phases["ts-embed"]["login"] > 0


def test_a_one_off_key_is_told_from_one_that_is_wrong() -> None:
    log = ("boot: Running 'tailscale up'", "backend error: invalid key: API key kAbC not valid")
    failing = sidecar("connecting", service="ts-vllm", state="restarting", restart_count=3)
    with pytest.raises(StartFailed, match="one-off key, and ts-embed has used it up"):
        Scripted([sidecar("ready"), failing], log=log).run("ts-embed", "ts-vllm")
    with pytest.raises(StartFailed, match="The tailnet refuses the auth key"):
        Scripted([failing], log=log).run("ts-vllm")


def test_a_certificate_that_does_not_come_ends_the_wait_with_its_reason() -> None:
    log = (
        "acme: ordering",
        'cert("qmd-embed.x.ts.net"): getCertPEM: acme: 429 urn:ietf:params:acme:error:rateLimited: too many certificates',
    )
    with pytest.raises(StartFailed, match="most certificates for this name"):
        Scripted([sidecar("certificate")], log=log).run("ts-embed")
    with pytest.raises(StartFailed, match="gets no certificate: getCertPEM: refused") as caught:
        Scripted([sidecar("certificate")], log=("getCertPEM: refused",)).run("ts-embed")
    assert caught.value.fix.startswith("qmdctl restart ts-embed tries again now")


def test_waiting_for_approval_is_no_loop_either() -> None:
    looks = []
    for count in range(4):
        looks += [[sidecar("approval", restart_count=count)], [sidecar("connecting", restart_count=count + 1)]]
    assert Scripted(*looks, [sidecar("ready", restart_count=4)]).run("ts-embed").restarted.keys() <= {"ts-embed"}
