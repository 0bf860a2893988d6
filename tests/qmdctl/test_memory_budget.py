"""The memory budget: what is planned, what is there, and which number to change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qmdctl.hardware import Hardware
from qmdctl.models.budget import GB, GIB, Budget, Plan, make_budget, plan_from
from qmdctl.models.known import model_config
from tests.qmdctl.machines import SPARK, card, machine

FOUR = Plan("Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Reranker-4B", "Qwen/Qwen3-4B", embed_memory_gb=24, kv_cache_gb=6)


def budget(plan: Plan, hardware: Hardware) -> Budget:
    return make_budget(plan, model_config, hardware)


def test_the_spark_preset_fits_an_idle_spark(tmp_path: Path) -> None:
    made = budget(FOUR, machine(tmp_path, SPARK, total_gib=121.7, available_gib=112))
    assert made.problems == ()
    (place,) = made.places
    assert place.memory == "unified"
    assert sum(part.bytes for part in place.parts) + 12 * GIB == place.planned_bytes


def test_a_spark_that_others_use_is_not_started_on(tmp_path: Path) -> None:
    (problem,) = budget(FOUR, machine(tmp_path, SPARK, total_gib=121.7, available_gib=31)).problems
    assert problem.message.startswith("Planned: embed 24.6 + vllm 26.1 + reserve 12.9 = 63.6 GB; available on NVIDIA GB10")
    assert "33.3 GB. Not starting" in problem.message
    assert "VLLM_GPU_MEMORY_UTILIZATION" in problem.fix and "30.3 GB are missing" in problem.fix


def test_three_4b_models_do_not_fit_a_card_of_24_gb(tmp_path: Path) -> None:
    made = budget(replace(FOUR, utilization=0.48, kv_cache_gb=2), machine(tmp_path, card("NVIDIA GeForce RTX 4090", 24564)))
    assert [problem.message.count("Not starting") for problem in made.problems] == [1]


def test_each_service_on_its_own_card(tmp_path: Path) -> None:
    cards = machine(tmp_path, card("NVIDIA GeForce RTX 4090", 24564), card("NVIDIA GeForce RTX 4090", 24564, index=1))
    made = budget(replace(FOUR, embed_memory_gb=20, utilization=0.6, kv_cache_gb=2, generate_gpu="1"), cards)
    assert [[part.service for part in place.parts] for place in made.places] == [["embed"], ["vllm"]]
    assert made.problems == ()


def test_a_cap_below_the_weights_names_the_number(tmp_path: Path) -> None:
    (problem,) = budget(replace(FOUR, embed_memory_gb=12), machine(tmp_path, SPARK, total_gib=121.7, available_gib=112)).problems
    assert problem.setting == "EMBED_MEMORY_GB"
    assert "16.1 GB of weights" in problem.message
    number = float(problem.fix.split("EMBED_MEMORY_GB=")[1].split()[0])
    assert not budget(replace(FOUR, embed_memory_gb=number), machine(tmp_path, SPARK, total_gib=121.7, available_gib=112)).problems


def test_a_fraction_that_does_not_hold_the_weights_names_the_number(tmp_path: Path) -> None:
    """0.20 is right for a Spark and too little for a card of 24 GB."""
    cards = machine(tmp_path, card("NVIDIA GeForce RTX 4090", 24564))
    plan = replace(FOUR, rerank_model="Qwen/Qwen3-Reranker-0.6B", embed_memory_gb=11.5, kv_cache_gb=None, utilization=0.2)
    (problem,) = budget(plan, cards).problems
    assert problem.setting == "VLLM_GPU_MEMORY_UTILIZATION"
    number = float(problem.fix.split("VLLM_GPU_MEMORY_UTILIZATION=")[1].split()[0])
    assert not budget(replace(plan, utilization=number), cards).problems


def test_a_kv_cache_for_less_than_one_text(tmp_path: Path) -> None:
    spark = machine(tmp_path, SPARK, total_gib=121.7, available_gib=112)
    (problem,) = budget(replace(FOUR, kv_cache_gb=1, max_model_len=40_960), spark).problems
    assert problem.setting == "VLLM_KV_CACHE_GB" and "VLLM_KV_CACHE_GB=6.1" in problem.fix  # 40,960 × 144 KiB


def test_without_generation_only_embed_is_planned(tmp_path: Path) -> None:
    plan = plan_from({"COMPOSE_PROFILES": "", "EMBED_MEMORY_GB": "24"}, cpu=False)
    (place,) = budget(plan, machine(tmp_path, SPARK, total_gib=121.7, available_gib=60)).places
    assert [part.service for part in place.parts] == ["embed"]


def test_a_reranker_that_is_the_embedding_model_counts_once(tmp_path: Path) -> None:
    spark = machine(tmp_path, SPARK, total_gib=121.7, available_gib=112)
    both = replace(FOUR, embed_memory_gb=None, generate_model=None)
    one = replace(both, rerank_model=both.embed_model)
    difference = budget(both, spark).places[0].planned_bytes - budget(one, spark).places[0].planned_bytes
    assert difference == pytest.approx(8.04 * GB, rel=0.01)


def test_on_a_cpu_float32_is_counted(tmp_path: Path) -> None:
    small = machine(tmp_path, total_gib=8, available_gib=7)
    (problem,) = budget(plan_from({}, cpu=True), small).problems
    assert "this machine (MemAvailable): 7.5 GB" in problem.message
    assert not budget(plan_from({"MAX_BATCH_TOKENS": "4096"}, cpu=True), machine(tmp_path, total_gib=24, available_gib=22)).problems


def test_a_value_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match="EMBED_MEMORY_GB=plenty is not a number"):
        plan_from({"EMBED_MEMORY_GB": "plenty"}, cpu=False)
