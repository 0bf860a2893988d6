"""Every preset fits its own hardware, and each machine gets the right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmdctl.errors import ConfigurationError
from qmdctl.hardware import Hardware
from qmdctl.models.budget import make_budget, plan_from
from qmdctl.models.known import KNOWN, model_config
from qmdctl.presets import Preset, choose_preset, find_preset, load_presets, scale
from tests.qmdctl.machines import SPARK, card, machine

# What the named hardware shows: MiB of the card; the Spark's two figures are those of its older firmware with 8 GiB taken by the system.
CARDS = {"24": ("NVIDIA GeForce RTX 4090", 24564), "16": ("NVIDIA GeForce RTX 4080", 16376),
         "12": ("NVIDIA GeForce RTX 3060", 12288), "8": ("NVIDIA GeForce RTX 3060 Ti", 8192)}  # fmt: skip


def own_machine(name: str, folder: Path, used_mib: int = 300) -> Hardware:
    if name == "spark":
        return machine(folder, SPARK, total_gib=119.7, available_gib=111)
    if name == "cpu":
        return machine(folder, total_gib=15.5, available_gib=13.5)
    return machine(folder, card(*CARDS[name], free=CARDS[name][1] - used_mib))


@pytest.mark.parametrize("name", load_presets())
def test_it_fits_its_own_hardware(name: str, tmp_path: Path) -> None:
    preset = find_preset(name)
    budget = make_budget(plan_from(preset.settings, cpu=preset.cpu), model_config, own_machine(name, tmp_path))
    assert budget.problems == (), budget.places[0].sentence()


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_drives_a_desktop_has_room_for_it(name: str, tmp_path: Path) -> None:
    budget = make_budget(plan_from(find_preset(name).settings, cpu=False), model_config, own_machine(name, tmp_path, used_mib=1_500))
    assert budget.problems == (), budget.places[0].sentence()


@pytest.mark.parametrize("name", load_presets())
def test_a_machine_gets_the_preset_made_for_it(name: str, tmp_path: Path) -> None:
    assert choose_preset(own_machine(name, tmp_path)) == find_preset(name)


@pytest.mark.parametrize("name", load_presets())
def test_its_models_are_known_without_a_network(name: str) -> None:
    settings = find_preset(name).settings
    assert {settings[key] for key in ("EMBED_MODEL", "RERANK_MODEL", "VLLM_MODEL")} <= set(KNOWN)


def test_three_4b_models_are_for_the_spark_and_larger_cards_only() -> None:
    def four(preset: Preset) -> int:
        return sum(model.endswith("4B") for key, model in preset.settings.items() if key.endswith("_MODEL"))

    assert [name for name, preset in load_presets().items() if four(preset) == 3] == ["spark"]


@pytest.mark.parametrize("mib", [40960, 46068, 81559, 143771])
def test_a_larger_card_gets_the_same_bytes_as_a_smaller_fraction(mib: int, tmp_path: Path) -> None:
    large = machine(tmp_path, card("NVIDIA H100", mib, free=mib - 1_500, capability="9.0"))
    preset = choose_preset(large)
    assert preset.name == "spark"
    assert float(preset.settings["VLLM_GPU_MEMORY_UTILIZATION"]) * (mib << 20) == pytest.approx(15.6e9, rel=0.1)
    assert make_budget(plan_from(preset.settings, cpu=False), model_config, large).problems == ()


@pytest.mark.parametrize(
    "mib", [6_144, 8_188, 10_240, 11_264, 12_282, 15_360, 16_376, 20_475, 22_731, 23_028, 24_564, 32_607, 36_864, 38_912, 40_960]
)
def test_what_a_card_gets_fits_it_beside_a_desktop(mib: int, tmp_path: Path) -> None:
    box = machine(tmp_path, card("NVIDIA card", mib, free=mib - 1_500))
    preset = choose_preset(box)
    assert preset.cpu or make_budget(plan_from(preset.settings, cpu=False), model_config, box).problems == ()
    assert preset.cpu == (mib == 6_144)


@pytest.mark.parametrize(("gib", "name"), [(119.7, "spark"), (61.4, "spark"), (29.9, "16"), (15.2, "cpu")])
def test_unified_memory_of_every_size_gets_what_fits(gib: float, name: str, tmp_path: Path) -> None:
    box = machine(tmp_path, SPARK.replace("GB10", "Orin"), total_gib=gib, available_gib=gib)
    preset = choose_preset(box)
    assert preset.name == name
    assert preset.cpu or make_budget(plan_from(preset.settings, cpu=False), model_config, box).problems == ()


def test_a_preset_that_is_named_takes_the_same_bytes_of_another_card(tmp_path: Path) -> None:
    large = own_machine("24", tmp_path)
    settings = scale(find_preset("8"), large).settings
    assert float(settings["VLLM_GPU_MEMORY_UTILIZATION"]) == 0.12  # of 25.8 GB, as 0.36 of 8.6 GB
    assert scale(find_preset("8"), machine(tmp_path)) == find_preset("8"), "without a GPU nothing is known of its size"


def test_a_card_whose_memory_others_hold_gets_the_same(tmp_path: Path) -> None:
    assert choose_preset(own_machine("24", tmp_path, used_mib=20_000)).name == "24"


def test_a_card_too_small_for_any_is_a_cpu_machine(tmp_path: Path) -> None:
    assert choose_preset(machine(tmp_path, card("NVIDIA T400", 4096, capability="7.5"))).name == "cpu"


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(ConfigurationError, match="no preset 'huge'") as caught:
        find_preset("huge")
    assert "spark, 24, 16, 12, 8, cpu" in caught.value.fix
