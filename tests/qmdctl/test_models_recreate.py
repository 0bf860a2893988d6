"""A container that is made anew with another model, and with the old one again where that fails. FAKE: Compose and the waiting."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from qmdctl.catalog.switch import Recreate, SwitchFailed
from qmdctl.errors import InterruptedByUser, QmdError
from qmdctl.probes import Broken, Probe
from tests.qmdctl.catalogs import Told


class Container:
    """`made`: whether each one was made with the new model. `wait` does the next of `ends`."""

    def __init__(self, *ends: BaseException | None) -> None:
        self.made: list[bool] = []
        self.ends = list(ends)

    def wait(self) -> None:
        end = self.ends.pop(0)
        if end is not None:
            raise end

    def recreate(self, prove: Callable[[], None] = lambda: None) -> Recreate:
        return Recreate("vllm", Told(), self.made.append, self.wait, prove)


def broken() -> None:
    raise QmdError("completion: came back empty", "qmdctl restart vllm")


def test_a_model_that_serves_stays() -> None:
    container = Container(None)
    container.recreate().run()
    assert container.made == [True]


def test_one_that_does_not_load_is_replaced_by_the_old_one() -> None:
    container = Container(QmdError("vllm: no such architecture", "choose another"), None)
    with pytest.raises(SwitchFailed, match=r"no such architecture\. The old one is served again; \.env is unchanged") as caught:
        container.recreate().run()
    assert (container.made, caught.value.fix) == ([True, False], "choose another")


def test_one_that_answers_wrongly_too() -> None:
    container = Container(None, None)
    with pytest.raises(SwitchFailed, match="came back empty"):
        container.recreate(broken).run()
    assert container.made == [True, False]


def test_where_the_old_one_does_not_come_back_both_causes_are_said() -> None:
    container = Container(QmdError("vllm: no such architecture"), QmdError("vllm: the disk is full", "free some space"))
    with pytest.raises(SwitchFailed, match=r"no such architecture.* did not come back: vllm: the disk is full") as caught:
        container.recreate().run()
    assert caught.value.fix == "free some space"


def test_ctrl_c_while_the_old_one_loads_says_both() -> None:
    container = Container(QmdError("vllm: no such architecture"), KeyboardInterrupt())
    with pytest.raises(InterruptedByUser, match=r"no such architecture.*is loading the old one again; \.env is unchanged"):
        container.recreate().run()
    assert container.made == [True, False]


def test_ctrl_c_starts_the_old_one_and_does_not_wait_for_it() -> None:
    container = Container(KeyboardInterrupt())
    with pytest.raises(InterruptedByUser, match=r"is loading the old model again; \.env is unchanged"):
        container.recreate().run()
    assert container.made == [True, False]


@pytest.mark.parametrize(
    ("first", "right"),
    [
        ({"id": "org/new", "root": "/models/hub/models--org--new/snapshots/1"}, True),
        ({"id": "a-name-of-its-owner", "root": "/models/hub/models--org--new/snapshots/1"}, True),  # VLLM_EXTRA_ARGS
        ({"id": "org/old", "root": "/models/hub/models--org--old/snapshots/1"}, False),
        (None, False),
    ],
)
def test_vllm_is_asked_which_model_it_serves(first: dict[str, str] | None, right: bool) -> None:
    """An alias that has the new model's name is on the list of every model."""
    listed = {"data": [first, {"id": "org/new"}] if first else []}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=listed))
    probe = Probe("vllm", "http://vllm", client=httpx.Client(transport=transport))
    if right:
        assert probe.models("org/new") == "org/new"
    else:
        with pytest.raises(Broken, match=r"it serves (org/old|nothing), not org/new"):
            probe.models("org/new")
