"""Every preset fits its own hardware, and each machine gets the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmdctl.errors import ConfigurationError
from qmdctl.hardware import Hardware
from qmdctl.models.budget import make_budget, plan_from
from qmdctl.models.known import KNOWN, model_config
from qmdctl.presets import Preset, choose_preset, find_preset, load_presets
from tests.qmdctl.machines import SPARK, card, machine

# What the named hardware shows: MiB of the card; the Spark's two figures are those of its older firmware with 8 GiB taken by the system.
CARDS = {"24": ("NVIDIA GeForce RTX 4090", 24564), "16": ("NVIDIA GeForce RTX 4080", 16376),
         "12": ("NVIDIA GeForce RTX 3060", 12288), "8": ("NVIDIA GeForce RTX 3060 Ti", 8192)}  # fmt: skip


def own_machine(name: str, folder: Path) -> Hardware:
    if name == "spark":
        return machine(folder, SPARK, total_gib=119.7, available_gib=111)
    if name == "cpu":
        return machine(folder, total_gib=15.5, available_gib=13.5)
    return machine(folder, card(*CARDS[name], free=CARDS[name][1] - 300))


@pytest.mark.parametrize("name", load_presets())
def test_it_fits_its_own_hardware(name: str, tmp_path: Path) -> None:
    preset = find_preset(name)
    budget = make_budget(plan_from(preset.settings, cpu=preset.cpu), model_config, own_machine(name, tmp_path))
    assert budget.problems == (), budget.places[0].sentence()


@pytest.mark.parametrize("name", load_presets())
def test_a_machine_gets_the_preset_made_for_it(name: str, tmp_path: Path) -> None:
    assert choose_preset(own_machine(name, tmp_path)).name == name


@pytest.mark.parametrize("name", load_presets())
def test_its_models_are_known_without_a_network(name: str) -> None:
    settings = find_preset(name).settings
    assert {settings[key] for key in ("EMBED_MODEL", "RERANK_MODEL", "VLLM_MODEL")} <= set(KNOWN)


def test_three_4b_models_are_for_the_spark_and_larger_cards_only() -> None:
    def four(preset: Preset) -> int:
        return sum(model.endswith("4B") for key, model in preset.settings.items() if key.endswith("_MODEL"))

    assert [name for name, preset in load_presets().items() if four(preset) == 3] == ["spark"]


@pytest.mark.parametrize("mib", [46068, 81559, 143771])
def test_a_larger_card_gets_the_same_bytes_as_a_smaller_fraction(mib: int, tmp_path: Path) -> None:
    large = machine(tmp_path, card("NVIDIA H100", mib, capability="9.0"))
    preset = choose_preset(large)
    assert preset.name == "spark"
    assert make_budget(plan_from(preset.settings, cpu=False), model_config, large).problems == ()


def test_a_card_too_small_for_any_is_a_cpu_machine(tmp_path: Path) -> None:
    assert choose_preset(machine(tmp_path, card("NVIDIA T400", 4096, capability="7.5"))).name == "cpu"


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(ConfigurationError, match="no preset 'huge'") as caught:
        find_preset("huge")
    assert "spark, 24, 16, 12, 8, cpu" in caught.value.fix
