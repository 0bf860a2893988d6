"""`qmdctl models use` on a running service: what is looked at, that the old model serves until the new one is proven, and going back."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from qmdctl.catalog.candidate import inspect
from qmdctl.catalog.roles import parse
from qmdctl.catalog.switch import ControlSwitch, SwitchFailed
from qmdctl.catalog.use import Change, carry_out, describe, look, prefetch
from qmdctl.errors import ConfigurationError, InterruptedByUser, MissingError, QmdError
from qmdctl.pulling.progress import Progress
from qmdctl.settings import load_settings
from tests.hub.conftest import fake_disk
from tests.qmdctl.catalogs import Local, LocalMachine, Scripted, Told
from tests.qmdctl.conftest import Run
from tests.qmdctl.projects import settings_of
from tests.support.checkpoints import checkpoint
from tests.support.disk import small_disk as small_disk
from tests.support.hub import FakeHub
from tests.support.service import ServiceProcess, poll

pytestmark = pytest.mark.timeout(600)
FIRST, SECOND, RERANKER = "org/first", "org/second", "org/reranker"
COMMENT = "# The owner's own words.\n"


@dataclass
class Box:
    """One running service on FIRST, which reranks by cosine, and the hub that it downloads from."""

    hub: FakeHub
    service: ServiceProcess
    environment: dict[str, str]
    commits: dict[str, str]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    home = tmp_path_factory.mktemp("models-use")
    (home / "home").mkdir()
    with FakeHub() as hub:
        commits = {FIRST: hub.add(FIRST, checkpoint("bge-base")), SECOND: hub.add(SECOND, checkpoint("nomic"))}
        commits[RERANKER] = hub.add(RERANKER, checkpoint("bert-cross-encoder"))
        environment = {**hub.environment(home / "cache"), "PROMPT_POLICY": "native"}
        # However busy the machine is: requests wait for the new model.
        environment |= {"LOAD_WAIT_SECONDS": "250", "REQUEST_DEADLINE_SECONDS": "280"}
        own = {"HOME": str(home / "home"), "CONTROL_SOCKET": str(home / "c" / "control.sock")}
        service = ServiceProcess({**environment, **own, "EMBED_MODEL": FIRST, "RERANK_MODEL": FIRST}, home / "service.log")
        with service:
            service.wait_healthy(240)
            yield Box(hub, service, environment, commits)


@pytest.fixture
def machine(box: Box, tmp_path: Path) -> Iterator[LocalMachine]:
    """With .env as the service was started; afterwards it serves FIRST again."""
    (tmp_path / "project").mkdir()
    values = {"COMPOSE_FILE": "compose.yaml:compose.cpu.yaml", "EMBED_MODEL": FIRST, "RERANK_MODEL": FIRST}
    settings = settings_of(tmp_path / "project", values, services=["embed"])
    env = settings.project.env_path
    env.write_text(COMMENT + env.read_text())
    one = LocalMachine(settings, Told(), box.environment, box.service)
    yield one
    box.hub.mend()
    box.hub.bytes_per_second = None
    if one.served()["embed"].id != FIRST:
        first = ("--embed-model", FIRST, "--rerank-model", FIRST)
        assert list(Local(box.service.environment).lines("control", "switch", *first))[-1].get("done")


def told_of(machine: LocalMachine) -> Told:
    assert isinstance(machine.terminal, Told)
    return machine.terminal


def looked(machine: LocalMachine, role: str, model: str) -> Change | None:
    return look(parse(role, model), machine.settings, machine, machine.terminal)


def change_of(machine: LocalMachine, role: str, model: str) -> Change:
    change = looked(machine, role, model)
    assert change is not None
    prefetch(change, machine, Progress(machine.terminal))
    return change


def test_a_switch_under_requests_loses_none_and_says_what_becomes_useless(machine: LocalMachine, box: Box, tmp_path: Path) -> None:
    """Embedding model and, by cosine, reranker; then a newer commit of the first."""
    assert looked(machine, "embed", f"{FIRST}@main") is None, "the hub has nothing newer"
    before = machine.served()["embed"]
    with Asking(box.service.url) as asking:
        change = change_of(machine, "embed", SECOND)
        effect = carry_out(change, machine.settings, machine)
    assert asking.failed == []
    now = machine.served()["embed"]
    assert (now.id, now.revision) == (SECOND, box.commits[SECOND])
    assert (effect.before, effect.after) == (before.fingerprint, now.fingerprint) and before.fingerprint != now.fingerprint
    assert {before.fingerprint, now.fingerprint} >= asking.fingerprints
    assert change.candidate.fingerprint == now.fingerprint, "told beforehand"
    assert effect.commands == ("qmd embed -f", "qmd cleanup"), "the reranker was the embedding model, and is the new one"
    told = told_of(machine).text
    steps = [f"{SECOND} is at the hub", "architecture nomic_bert", "weights in safetensors", "Planned: embed"]
    assert [step for step in steps if step in told] == steps
    env = machine.env_text()
    assert env.startswith(COMMENT)
    for line in (f"EMBED_MODEL={SECOND}", f"EMBED_REVISION={box.commits[SECOND]}", f"RERANK_MODEL={SECOND}"):
        assert f"{line}\n" in env
    assert looked(machine, "embed", SECOND) is None, "once more is nothing to do"

    newer = box.hub.add(FIRST, with_other_prompt(tmp_path / "newer"))
    change = change_of(machine, "embed", f"{FIRST}@main")
    assert 0 < change.candidate.missing_bytes < 100_000, "the weights are those that are here"
    assert "requests wait" in "\n".join(describe(change, open_port=True))
    carry_out(change, machine.settings, machine)
    assert machine.served()["embed"].revision == newer != box.commits[FIRST]
    assert f"EMBED_REVISION={newer}\n" in machine.env_text()
    assert looked(machine, "embed", FIRST) is None, "a bare id keeps the commit that it has"

    behind = machine.env_text().replace(newer, box.commits[FIRST])  # as after a qmdctl that was killed before it wrote
    machine.project.env_path.write_text(behind)
    box.service.log.write_text("")
    change = change_of(machine, "embed", f"{FIRST}@main")
    assert change.same
    carry_out(change, machine.settings, machine)
    assert f"EMBED_REVISION={newer}\n" in machine.env_text()
    assert "engine phase" not in box.service.log.read_text(), "it is served already"


class Asking:
    """A client that asks for one vector after another while the block runs."""

    def __init__(self, url: str) -> None:
        self.url, self.failed, self.fingerprints = url, list[str](), set[str | None]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=300) as client:
            while not self._stop.is_set():
                answer = client.post("/v1/embeddings", json={"input": ["a cactus"]})
                if answer.status_code == 200:
                    self.fingerprints.add(answer.headers["x-embedding-fingerprint"])
                else:
                    self.failed.append(answer.text)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def with_other_prompt(folder: Path) -> Path:
    """FIRST with another prompt: the weights are the same, the fingerprint is not."""
    shutil.copytree(checkpoint("bge-base"), folder)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "find: "}}))
    return folder


def test_what_cannot_serve_is_refused_before_any_download_and_nothing_changes(machine: LocalMachine, box: Box, tmp_path: Path) -> None:
    """What else the embed service refuses: tests/hub/test_inspect.py."""
    env = machine.env_text()
    large = shutil.copytree(checkpoint("nomic"), tmp_path / "large")
    sizes = {"n_embd": 8192, "n_inner": 32_768, "n_layer": 64, "n_head": 64}
    (large / "config.json").write_text(json.dumps(json.loads((large / "config.json").read_text()) | sizes))
    box.hub.add("org/large", large)
    with pytest.raises(ConfigurationError, match=r"is not a model of .* Nothing was changed\."):
        looked(machine, "embed", "org/nothing")
    with pytest.raises(MissingError, match=r"org/large does not fit in memory .*Planned: embed .* Nothing was downloaded"):
        looked(machine, "embed", "org/large")
    machine.environment = box.environment | fake_disk(tmp_path / "full", 100)
    with pytest.raises(MissingError, match=r"needs 0\.0. GB more on the disk"):
        looked(machine, "embed", "org/large")
    assert not [one for one in box.hub.file_requests(".safetensors") if "org/large" in one.path]
    assert machine.env_text() == env
    assert (machine.served()["embed"].id, machine.dimensions()) == (FIRST, 64)


@pytest.mark.parametrize(
    ("code", "kind"),
    [("gated", MissingError), ("no_disk", MissingError), ("unsupported", ConfigurationError), ("no_safetensors", ConfigurationError)],
)
def test_the_services_own_sentence_is_said_with_the_exit_status_of_its_kind(code: str, kind: type[QmdError]) -> None:
    line = {"model": "org/x", "role": "embed", "error": "The sentence with its fix.", "code": code}
    with pytest.raises(kind, match=r"The sentence with its fix\. Nothing was changed\."):
        inspect(Scripted([line]), parse("embed", "org/x"), newest=False)


def test_the_limit_is_the_services_own_and_what_it_ends_says_how_to_wait_longer(machine: LocalMachine) -> None:
    env = machine.env_text()
    change = change_of(machine, "embed", SECOND)
    assert machine.control is not None
    with pytest.raises(SwitchFailed, match="took longer than the time allowed") as caught:
        ControlSwitch(machine.control, machine.terminal, machine.prove, 0.001).run(change.before, change.after)
    assert caught.value.fix == "a larger --timeout waits longer; .env is unchanged"
    assert machine.env_text() == env
    poll(lambda: box_is_back(machine), 250, "the old model", 0.5)


def test_ctrl_c_in_a_switch_leaves_the_old_model(machine: LocalMachine) -> None:
    env = machine.env_text()
    change = change_of(machine, "embed", SECOND)

    def press(text: str) -> None:
        if text.strip() in ("starting", "loading weights"):
            signal.raise_signal(signal.SIGINT)

    told_of(machine).on_note = press
    with pytest.raises(InterruptedByUser, match=r"goes back .* \.env is unchanged"):
        carry_out(change, machine.settings, machine)
    assert machine.env_text() == env
    poll(lambda: box_is_back(machine), 250, "the old model", 0.5)


def test_ctrl_c_while_the_new_model_is_proven_brings_the_old_one_back_even_when_pressed_again(
    machine: LocalMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = machine.env_text()
    change = change_of(machine, "embed", SECOND)
    told = told_of(machine)
    pressed = []

    def press_again(text: str) -> None:
        if "Going back" in text or (len(pressed) == 1 and text.strip() in ("starting", "loading weights")):
            pressed.append(text)
            signal.raise_signal(signal.SIGINT)

    told.on_note = press_again
    monkeypatch.setattr(machine, "prove", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(InterruptedByUser, match=r"The old model is served again; \.env is unchanged"):
        carry_out(change, machine.settings, machine)
    assert len(pressed) == 2
    assert box_is_back(machine)
    assert machine.env_text() == env
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def box_is_back(machine: LocalMachine) -> bool:
    now = machine.served()["embed"]
    return (now.id, now.state) == (FIRST, "ok")


def test_a_network_that_breaks_off_is_gone_on_with(machine: LocalMachine, box: Box) -> None:
    box.hub.add("org/cut", checkpoint("bge-reranker-base"))
    box.hub.cut_after = 1_000_000
    change_of(machine, "rerank", "org/cut")
    weights = [one for one in box.hub.file_requests(".safetensors") if "org/cut" in one.path and one.status in (200, 206)]
    assert [one.status for one in weights] == [200, 206]
    assert machine.dimensions() == 64, "the old one has served meanwhile"


def test_a_disk_that_becomes_full_keeps_what_is_there(machine: LocalMachine, box: Box, small_disk: Path) -> None:
    """The model is 9 MB; 20 of 24 MB are taken once its download has begun."""
    box.hub.add("org/full", checkpoint("bge-reranker-base"))
    env = machine.env_text()
    machine.environment = {**box.environment, "HF_HOME": str(small_disk)}
    change = looked(machine, "rerank", "org/full")
    assert change is not None
    box.hub.bytes_per_second = 5e6

    def fill(text: str) -> None:
        if "weights org/full" in text and not (small_disk / "filler").exists():
            with contextlib.suppress(OSError):  # as much as there is room for
                (small_disk / "filler").write_bytes(bytes(26_000_000))

    told_of(machine).on_note = fill
    with pytest.raises(QmdError, match="became full") as caught:
        prefetch(change, machine, Progress(machine.terminal))
    assert "qmdctl models use rerank org/full" in caught.value.fix
    assert machine.env_text() == env
    assert machine.dimensions() == 64
    (small_disk / "filler").unlink()
    box.hub.bytes_per_second = None
    told_of(machine).on_note = lambda text: None
    prefetch(change, machine, Progress(machine.terminal))


def test_a_service_that_does_not_run_gets_its_model_with_the_next_up(machine: LocalMachine, box: Box) -> None:
    machine.service = None
    change = change_of(machine, "rerank", RERANKER)
    assert any("`qmdctl up` starts with it" in line for line in describe(change, open_port=False))
    carry_out(change, machine.settings, machine)
    assert f"RERANK_MODEL={RERANKER}\n" in machine.env_text()
    assert looked(machine, "rerank", RERANKER) is None


def test_what_is_written_into_env_meanwhile_stays_and_a_disk_that_is_full_leaves_it(
    machine: LocalMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.service = None
    settings = machine.settings
    change = change_of(machine, "rerank", RERANKER)
    env = settings.project.env_path
    env.write_text(env.read_text() + "LOG_LEVEL=debug\n")
    before = env.read_text()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("qmdctl.env_file.os.fsync", full)
        with pytest.raises(ConfigurationError, match="No space left"):
            carry_out(change, settings, machine)
    assert env.read_text() == before
    assert [path.name for path in env.parent.glob(".env*") if path.name not in (".env", ".env.example")] == []
    carry_out(change, settings, machine)
    assert "LOG_LEVEL=debug\n" in env.read_text()


def test_names_that_the_hub_could_not_have() -> None:
    for text in ("nothing", "org/", "org/a b", "../x", "org/x@", "org/x@a b", "org/a--b"):
        with pytest.raises(ConfigurationError):
            parse("embed", text)
    with pytest.raises(ConfigurationError, match="not a place"):
        parse("chat", "org/x")
    assert parse("embed", "/models/mine").folder


def test_a_value_that_env_cannot_give_is_told_before_anything_else(machine: LocalMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(machine.project, environment={"EMBED_MODEL": "org/else"})
    with pytest.raises(ConfigurationError, match="set in this shell's environment"):
        look(parse("embed", SECOND), settings, machine, machine.terminal)
    with pytest.raises(ConfigurationError, match="vllm is not among the services"):
        looked(machine, "generate", "org/chat")


def test_no_engine_and_a_command_that_changes_already(qmdctl: Run, folder: Path) -> None:
    (folder / ".env").write_text("EMBED_PORT=8001\n")
    alone = qmdctl("--project", str(folder), "models", "use", "embed", SECOND, "--json")
    assert alone.returncode == 3, alone.stderr
    assert "No Docker engine" in json.loads(alone.stdout)["error"]
    (folder / ".qmdctl").mkdir(exist_ok=True)
    hold = "import fcntl, json, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); json.dump({'verb': 'upgrade', 'pid': "
    hold += "os.getpid(), 'since': '12:00:00'}, f); f.flush(); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, folder / ".qmdctl/lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline()
        for verb in (("use", "embed", SECOND), ("prune",)):
            second = qmdctl("--project", str(folder), "models", *verb)
            assert second.returncode == 1
            assert f"qmdctl upgrade, process {first.pid}" in second.stderr
        first.communicate("\n")
