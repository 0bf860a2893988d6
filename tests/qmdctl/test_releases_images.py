"""Recording and pruning against an engine that is FAKE: a table of image names. The real one is in tests/stack/test_upgrade.py."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest

from qmdctl import env_file
from qmdctl.engine import Container
from qmdctl.releases import images, prepare, prune, rollback, snapshot, steps, upgrade
from qmdctl.releases.journal import DONE, Journal
from qmdctl.releases.record import History, Image, Record, Release, Texts
from qmdctl.terminal import Terminal
from tests.qmdctl.containers import container
from tests.qmdctl.projects import settings_of

TEXTS = Texts("services: {embed: {}}\n", "EMBED_PORT=8001\n")


@dataclass
class FakeEngine:
    """FAKE: `names` leads image names to IDs; an ID in `busy` cannot lose its last name."""

    names: dict[str, str] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    running: dict[str, Container] = field(default_factory=dict)

    @property
    def client(self) -> Any:
        return SimpleNamespace(
            images=SimpleNamespace(get=self.get), api=SimpleNamespace(tag=self.tag, remove_image=self.remove, timeout=10)
        )

    def containers(self, _: str) -> dict[str, Container]:
        return self.running

    def has_image(self, name: str) -> bool:
        return name in self.names

    def get(self, name: str) -> Any:
        image = self.names.get(name) or (name if name in self.names.values() else None)
        if image is None:
            raise docker.errors.ImageNotFound("gone", response=SimpleNamespace(status_code=404))  # type: ignore[arg-type]
        return SimpleNamespace(id=image, attrs={"RepoDigests": []})

    def tag(self, image: str, repository: str, version: str) -> bool:
        self.names[f"{repository}:{version}"] = self.get(image).id
        return True

    def remove(self, name: str) -> None:
        image = self.get(name).id
        if image in self.busy and list(self.names.values()).count(image) == 1:
            raise docker.errors.APIError("conflict", SimpleNamespace(status_code=409), "container x uses it")  # type: ignore[arg-type]
        del self.names[name]


def record(number: int, image: str, name: str = "qmd-embed:0.1.0") -> Record:
    one = Image(name, image, key="EMBED_IMAGE", kept=f"qmd-embed:release-{number:04}" if number else "")
    return Record(number, "2026-11-26T05:00:00+00:00", "up", Release("0.1.0"), ["embed"], {"embed": one}, {})


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    return SimpleNamespace(project=SimpleNamespace(folder=tmp_path), name="qmd")


def start(engine: FakeEngine, settings: Any, monkeypatch: pytest.MonkeyPatch, image: str) -> Record | None:
    monkeypatch.setattr(snapshot, "look", lambda *_: (record(0, image), TEXTS))
    return snapshot.record_start(settings, engine, None, Terminal(), "up", 3.0)  # type: ignore[arg-type]


def test_an_image_is_kept_by_a_tag_and_an_unchanged_start_is_not_recorded(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine({"qmd-embed:0.1.0": "sha256:1"})
    first = start(engine, settings, monkeypatch, "sha256:1")
    assert first is not None and first.number == 1
    assert engine.names["qmd-embed:release-0001"] == "sha256:1"
    assert start(engine, settings, monkeypatch, "sha256:1") == first
    engine.names["qmd-embed:0.1.0"] = "sha256:2"  # built again
    second = start(engine, settings, monkeypatch, "sha256:2")
    assert second is not None and second.number == 2
    assert engine.names["qmd-embed:release-0001"] == "sha256:1"


def test_a_number_whose_tag_another_checkout_has_is_passed_over(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine({"qmd-embed:0.1.0": "sha256:1", "qmd-embed:release-0001": "sha256:9"})
    made = start(engine, settings, monkeypatch, "sha256:1")
    assert made is not None and made.number == 2
    assert engine.names["qmd-embed:release-0001"] == "sha256:9"


def test_a_full_disk_costs_the_record_and_leaves_no_tag(
    settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(History, "write", full)
    engine = FakeEngine({"qmd-embed:0.1.0": "sha256:1"})
    assert start(engine, settings, monkeypatch, "sha256:1") is None
    assert "not in the history: No space left on device. The stack runs all the same." in capsys.readouterr().err
    assert list(engine.names) == ["qmd-embed:0.1.0"]


def test_a_start_beside_which_another_service_still_loads_is_not_recorded(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine({"qmd-embed:0.1.0": "sha256:1"}, running={"vllm": container("vllm", health="starting")})
    assert start(engine, settings, monkeypatch, "sha256:1") is None


def test_pruning_takes_tags_and_says_what_stays(settings: Any) -> None:
    folder = settings.project.folder
    names = {"qmd-embed:release-0001": "sha256:1", "qmd-embed:release-0002": "sha256:2", "qmd-embed:release-0003": "sha256:3"}
    engine = FakeEngine({**names, "vllm:2": "sha256:2"}, busy={"sha256:1"})
    there = History(folder)
    for one in (record(1, "sha256:1"), record(2, "sha256:2", "vllm:2"), record(3, "sha256:3")):
        there.write(one, TEXTS)
    done = prune.prune(there, there.records[:2], engine)  # type: ignore[arg-type]
    assert done.numbers == [1, 2]
    assert done.untagged == ["qmd-embed:release-0002"]
    assert done.notes == [
        "qmd-embed:release-0001 stays: container x uses it",
        "vllm:2 stays under its own name; if nothing else needs it: docker image rm vllm:2",
    ]
    assert [one.number for one in History(folder).records] == [3]


def test_names_with_and_without_a_tag() -> None:
    engine = FakeEngine({"a:1": "sha256:1"})
    for name, tagged in (("b", "b:latest"), ("localhost:5000/b", "localhost:5000/b:latest"), ("localhost:5000/b:2", "localhost:5000/b:2")):
        assert images.tag(engine, "sha256:1", name)  # type: ignore[arg-type]
        assert engine.names[tagged] == "sha256:1"
    assert not images.tag(engine, "sha256:7", "c:1")  # type: ignore[arg-type]


def test_an_image_that_embed_builds_is_not_pulled_for_the_exporter(tmp_path: Path) -> None:
    there = settings_of(tmp_path, {"EMBED_IMAGE": "mine:1", "COMPOSE_PROFILES": "generation,metrics"})
    assert "exporter" in there.services
    wanted = prepare.missing(FakeEngine({}), there, tmp_path, set())  # type: ignore[arg-type]
    assert "mine:1" not in wanted
    assert there["VLLM_IMAGE"] in wanted
    assert upgrade.parse_images(["exporter=mine:2"], there) == {"embed": ("EMBED_IMAGE", "mine:2")}


def test_the_image_of_two_services_is_named_once() -> None:
    """The exporter's is embed's, which `up` would build under its own name."""
    both = Image("qmd-embed:0.1.0", "sha256:1", key="EMBED_IMAGE", kept="qmd-embed:release-0001")
    env = env_file.parse("")
    for services in (("embed", "exporter"), ("exporter", "embed")):
        one = replace(record(1, "sha256:1"), images=dict.fromkeys(services, both))
        rollback.pin_images(env, one, lambda name: ("sha256:1", ""), {"embed"})
        assert env.values == {"EMBED_IMAGE": "qmd-embed:release-0001"}


def test_going_back_goes_on_where_an_image_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[str] = []
    monkeypatch.setattr(steps.child, "up", lambda project, terminal, *given: options.extend(given))
    monkeypatch.setattr(steps.child, "broken_links", lambda *_: [])
    machine = steps.Machine(tmp_path, FakeEngine({"vllm:1": "sha256:5"}), Terminal())  # type: ignore[arg-type]
    before = steps.before_step(None, {"vllm:1": "sha256:2"}, True)
    up = steps.up_step([])
    up.state = DONE
    steps.undo(before, machine, Journal(tmp_path, "upgrade", "t", [before, up]))
    assert options == ["--skip-checks"], "not --no-build: what is gone is built or pulled again"
