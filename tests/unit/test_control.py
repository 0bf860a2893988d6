"""What a switch means for the settings, what of it is kept, who may use the socket, and the door for requests."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import stat
from pathlib import Path
from typing import Any, Literal

import pytest

from embed_service.control import chosen
from embed_service.control.operations import Caller, Operations, _changed
from embed_service.control.server import ControlServer
from embed_service.control.wire import Command, ControlError, parse
from embed_service.errors import SettingsError, Unavailable
from embed_service.scheduler.service import Service, models_environment
from embed_service.settings import Settings, load_settings

OLD = Settings(embed_model="a/embed", embed_revision="1", rerank_model="a/rerank", rerank_revision="2", load_wait_seconds=0.05)


@pytest.mark.parametrize(
    ("wanted", "models"),
    [
        ({"embed_model": "b"}, ("b", None, "a/rerank", "2")),
        ({"embed_model": "b", "embed_revision": "r"}, ("b", "r", "a/rerank", "2")),
        ({"embed_revision": "r"}, ("a/embed", "r", "a/rerank", "2")),
        ({"embed_model": "a/embed"}, ("a/embed", "1", "a/rerank", "2")),
        ({"rerank_model": "c"}, ("a/embed", "1", "c", None)),
    ],
)
def test_a_switch_keeps_what_it_does_not_name(wanted: dict[str, str], models: tuple[str | None, ...]) -> None:
    new = _changed(OLD, Command(command="switch", **wanted))
    assert tuple(chosen.models_of(new).values()) == models


def test_a_reranker_by_cosine_follows_the_embedding_model() -> None:
    cosine = OLD.model_copy(update={"rerank_model": "a/embed", "rerank_revision": "1"})
    followed = _changed(cosine, Command(command="switch", embed_model="b", embed_revision="r"))
    assert tuple(chosen.models_of(followed).values()) == ("b", "r", "b", "r")
    parted = _changed(cosine, Command(command="switch", rerank_model="c"))
    assert tuple(chosen.models_of(parted).values()) == ("a/embed", "1", "c", None)


def test_an_engine_s_environment_says_all_of_its_models() -> None:
    environment = models_environment(_changed(OLD, Command(command="switch", embed_model="b")))
    assert environment == {"EMBED_MODEL": "b", "EMBED_REVISION": "", "RERANK_MODEL": "a/rerank", "RERANK_REVISION": "2"}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"command": "stop"}', "command"),
        (b'{"command": "switch", "embed_model": " "}', "embed_model"),
        (b'{"command": "pause", "timeout_seconds": 0}', "timeout_seconds"),
        (b'{"command": "pause", "timeout_seconds": NaN}', "timeout_seconds"),
        (b'{"command": "pause", "quickly": true}', "quickly"),
    ],
)
def test_a_line_that_is_no_command_is_named(line: bytes, field: str) -> None:
    with pytest.raises(ControlError, match=field) as error:
        parse(line)
    assert error.value.code == "bad_command"


# What is kept


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_what_was_chosen_counts_while_the_settings_are_those_it_replaced(home: Path) -> None:
    new = OLD.model_copy(update={"embed_model": "b", "embed_revision": None})
    chosen.keep(OLD, new)
    assert chosen.models_of(chosen.restore(OLD)) == chosen.models_of(new)
    assert chosen.restore(OLD).load_wait_seconds == OLD.load_wait_seconds
    for name in chosen.MODEL_SETTINGS:
        chosen.keep(OLD, new)
        edited = OLD.model_copy(update={name: "elsewhere"})
        assert chosen.restore(edited) is edited, name
        assert chosen.restore(OLD) is OLD, "put back, they mean what they say"
    chosen.keep(OLD, new)
    chosen.keep(OLD, OLD)  # back at the container's own
    assert not chosen.path().exists()
    assert chosen.restore(OLD) is OLD


def test_what_was_chosen_does_not_count_in_a_container_made_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = OLD.model_copy(update={"embed_model": "b"})
    chosen.keep(OLD, new)
    own = socket.gethostname()
    monkeypatch.setattr(socket, "gethostname", lambda: "1f2e3d4c5b6a")
    assert chosen.restore(OLD) is OLD
    assert not chosen.path().exists()
    chosen.keep(OLD, new)
    assert chosen.restore(OLD).embed_model == "b", "after `docker restart`"
    monkeypatch.setattr(socket, "gethostname", lambda: own)
    chosen.path().parent.chmod(0o500)
    assert chosen.restore(OLD) is OLD, "where it cannot be deleted"
    chosen.path().parent.chmod(0o700)


HOST = socket.gethostname()
MODELS = {"embed_model": "b", "embed_revision": None, "rerank_model": "c", "rerank_revision": None}


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"replaced": {"embed_mo',
        "[]",
        json.dumps({"host": HOST, "replaced": MODELS}),
        json.dumps({"host": HOST, "replaced": MODELS, "chosen": {"embed_model": "b"}}),
        json.dumps({"host": HOST, "replaced": MODELS, "chosen": {**MODELS, "embed_model": None}}),
        json.dumps({"host": HOST, "replaced": MODELS, "chosen": {**MODELS, "rerank_revision": 7}}),
        json.dumps({"host": HOST, "replaced": 5, "chosen": MODELS}),
        json.dumps({"replaced": MODELS, "chosen": MODELS}),
        "\x00\x01",
    ],
)
def test_a_damaged_file_is_ignored(home: Path, content: str) -> None:
    chosen.path().parent.mkdir(parents=True)
    chosen.path().write_text(content)
    settings = OLD.model_copy(update=MODELS)
    assert chosen.restore(settings) is settings


def test_a_file_that_cannot_be_written_leaves_the_one_before(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = OLD.model_copy(update={"embed_model": "b"})
    chosen.keep(OLD, first)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        chosen.keep(OLD, OLD.model_copy(update={"embed_model": "c"}))
    assert chosen.restore(OLD).embed_model == "b"
    assert [file.name for file in chosen.path().parent.iterdir()] == ["models.json"]


# The socket


@pytest.mark.parametrize(("path", "why"), [("control.sock", "absolute"), (f"/tmp/{'x' * 100}", "at most 103 bytes")])
def test_a_socket_path_that_cannot_be_one_is_refused_at_start(path: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_SOCKET", path)
    with pytest.raises(SettingsError, match=f"CONTROL_SOCKET: .*{why}"):
        load_settings()


def test_a_folder_of_others_a_file_and_another_service_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    operations: Any = None

    async def listens(path: Path) -> bool:
        server = ControlServer(str(path), operations)
        await server.start()
        listening = server._server is not None
        if listening:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            second = ControlServer(str(path), operations)
            await second.start()
            assert second._server is None
            await second.close()
            assert path.is_socket()
        await server.close()
        return listening

    own, shared = tmp_path / "own" / "s", tmp_path / "shared" / "s"
    shared.parent.mkdir()
    shared.parent.chmod(0o755)
    file = tmp_path / "private" / "s"
    file.parent.mkdir(mode=0o700)
    file.write_text("kept")
    with caplog.at_level(logging.CRITICAL):
        assert asyncio.run(listens(own))
        assert not asyncio.run(listens(shared))
        assert not asyncio.run(listens(file))
    assert not own.exists() and not shared.exists()
    assert file.read_text() == "kept"


# The door


def test_who_is_inside_keeps_the_models_as_they_are() -> None:
    """A request that has token ids of the old model is answered before a hold is over; who comes later waits outside."""

    async def check() -> None:
        service = Service(OLD)
        door = service.admission
        service.engine.ready.set()
        leave = asyncio.Event()
        order: list[str] = []

        async def request(name: str, until: asyncio.Event | None = None) -> None:
            async with door.admitted():
                order.append(f"{name} in")
                if until is not None:
                    await until.wait()
            order.append(f"{name} out")

        first = asyncio.create_task(request("first", leave))
        await asyncio.sleep(0)
        await door.hold("switching")
        second = asyncio.create_task(request("second"))
        emptied = asyncio.create_task(door.empty())
        for _ in range(5):
            await asyncio.sleep(0)
        assert (order, emptied.done(), door.inside, door.waiting) == (["first in"], False, 1, 1)
        leave.set()
        await asyncio.gather(first, emptied)
        assert door.inside == 0 and not second.done()
        await door.release()
        await second
        assert order == ["first in", "first out", "second in", "second out"]

    asyncio.run(check())


def test_a_request_to_a_paused_service_is_503_and_a_restart_is_not_waited_for() -> None:
    async def refused(settings: Settings, leaving: bool) -> Unavailable:
        service = Service(settings)
        await service.admission.hold("paused")

        async def request() -> None:
            async with service.admitted():
                raise AssertionError("nobody is let in")

        waiting = asyncio.create_task(request())
        await asyncio.sleep(0)
        if leaving:
            await service.admission.leave()
        with pytest.raises(Unavailable) as error:
            await waiting
        assert service.admission.inside == service.admission.waiting == 0
        return error.value

    paused = asyncio.run(refused(OLD, False))
    assert (paused.code, paused.headers) == ("paused", {"Retry-After": "30"})
    patient = OLD.model_copy(update={"load_wait_seconds": 3600.0})
    restarting = asyncio.run(refused(patient, True))
    assert (restarting.code, restarting.headers) == ("restarting", {"Retry-After": "1"})


def test_a_client_that_leaves_at_the_door_is_forgotten() -> None:
    async def check() -> None:
        service = Service(OLD.model_copy(update={"load_wait_seconds": 3600.0}))

        async def request() -> None:
            async with service.admitted():
                raise AssertionError("nobody is let in")

        waiting = asyncio.create_task(request())
        for _ in range(3):
            await asyncio.sleep(0)
        assert service.admission.waiting == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert service.admission.inside == service.admission.waiting == 0
        service.engine.ready.set()
        async with asyncio.timeout(5), service.admitted():
            assert service.admission.inside == 1

    asyncio.run(check())


def test_one_command_at_a_time() -> None:
    async def check() -> None:
        service = Service(OLD)
        operations = Operations(service, OLD)

        service.engine.ready.set()
        async with service.admitted():
            pausing = asyncio.create_task(operations.run(Command(command="pause"), Caller()))
            for _ in range(5):
                await asyncio.sleep(0)
            with pytest.raises(ControlError, match="`pause` is under way") as error:
                await operations.run(Command(command="resume"), Caller())
            assert error.value.code == "busy"
            status = await operations.run(Command(command="status"), Caller())
            assert (status["under_way"], status["requests"], status["state"]) == ("pause", 1, "serving")
        assert (await pausing)["state"] == "paused"
        assert (await operations.run(Command(command="pause"), Caller()))["state"] == "paused"

    asyncio.run(check())


def test_a_pause_that_takes_too_long_or_is_left_changes_nothing() -> None:
    async def check() -> None:

        service = Service(OLD)
        operations = Operations(service, OLD)
        service.engine.ready.set()
        lines: list[dict[str, Any]] = []
        async with service.admitted():
            for command, caller, code in (
                (Command(command="pause", timeout_seconds=0.01), Caller(lines.append), "timeout"),
                (Command(command="pause"), Caller(), "abandoned"),
            ):
                if code == "abandoned":
                    caller.gone.set()
                with pytest.raises(ControlError) as error:
                    await operations.run(command, caller)
                assert error.value.code == code
                assert service.admission.held is None
                async with service.admitted():
                    pass
        assert lines == [{"phase": "draining", "requests": 1, "queued_tokens": 0}]
        assert operations.describe()["state"] == "serving"

    asyncio.run(check())


@pytest.mark.parametrize("command", ["switch", "pause"])
def test_what_ends_early_while_idle_leaves_an_engine(monkeypatch: pytest.MonkeyPatch, command: Literal["switch", "pause"]) -> None:
    """The time that was allowed is over at once, and the pause cannot be had."""

    async def check() -> None:
        service = Service(OLD)
        operations = Operations(service, OLD)
        loads: list[str] = []
        unload = service.unload

        async def load(settings: Settings) -> None:
            loads.append(settings.embed_model)
            service.settings = settings
            if settings is OLD:
                service.engine.ready.set()

        async def unloaded(phase: Any) -> None:
            if phase == "paused":
                raise RuntimeError("no pause")
            await unload(phase)

        monkeypatch.setattr(service, "load", load)
        monkeypatch.setattr(service, "unload", unloaded)
        await service.admission.hold("idle")
        await service.unload("idle")
        models = {"embed_model": "b"} if command == "switch" else {}
        with pytest.raises((ControlError, RuntimeError), match=r"longer than the time allowed|no pause"):
            await operations.run(Command(command=command, timeout_seconds=1e-6, **models), Caller())
        assert loads[-1] == OLD.embed_model
        async with asyncio.timeout(5), service.admitted():
            pass

    asyncio.run(check())


def test_a_resume_starts_an_engine_where_there_is_none_though_nobody_holds_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        service = Service(OLD)

        async def load(settings: Settings) -> None:
            service.engine.ready.set()

        monkeypatch.setattr(service, "load", load)
        await service.unload("idle")
        async with asyncio.timeout(5):
            await Operations(service, OLD).run(Command(command="resume"), Caller())
        assert service.engine.ready.is_set()

    asyncio.run(check())
