"""The memory budget: what is planned, what is there, and which number to change."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmdctl.errors import ConfigurationError
from qmdctl.hardware import Gpu, Hardware
from qmdctl.models.budget import make_budget, plan_from, sequence_bytes
from qmdctl.models.known import model_config
from qmdctl.models.plan import GB, GIB, Budget, Plan, Problem
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
    assert problem.fix.startswith("stop what uses the memory, or choose smaller models (qmdctl init): 30.3 GB are missing")


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


@pytest.mark.parametrize("text", ["plenty", "inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize("key", ["EMBED_MEMORY_GB", "VLLM_GPU_MEMORY_UTILIZATION", "VLLM_KV_CACHE_GB", "VLLM_MAX_MODEL_LEN"])
def test_a_value_that_is_no_number_is_named(key: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"{key}={text} is not a number"):
        plan_from({key: text}, cpu=False)


@pytest.mark.parametrize("dtype", ["half", "float16", "float", "float32", "bfloat16", "auto"])
def test_a_precision_of_vllm_is_counted(dtype: str, tmp_path: Path) -> None:
    spark = machine(tmp_path, SPARK, total_gib=121.7, available_gib=112)
    assert not budget(plan_from({"VLLM_DTYPE": dtype, "VLLM_KV_CACHE_GB": "6"}, cpu=False), spark).problems


@pytest.mark.parametrize(("key", "dtype"), [("DTYPE", "fp16"), ("DTYPE", "half"), ("VLLM_DTYPE", "fp16")])
def test_a_precision_that_the_service_refuses_is_named(key: str, dtype: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"^{key}={dtype} is not a precision") as caught:
        budget(plan_from({key: dtype}, cpu=False), machine(tmp_path, SPARK, total_gib=121.7, available_gib=112))
    assert caught.value.fix.startswith(f"set {key} to auto, bfloat16")


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        ("--host 10.0.0.1 --tensor-parallel-size 2 --nnodes 2", 2),
        ("--tensor-parallel-size=4", 4),
        ("-tp 2 --headless", 2),
        ("-tp=2", 2),
        ("--tensor_parallel_size 2", 2),
        ("--tensor-parallel-size 2 -tp 4", 4),  # the last one counts
        ("", 1),
        ("--served-model-name tensor-parallel-size 2", 1),
        ("--tensor-parallel-size", 1),
        ("--tensor-parallel-size two", 1),
        ("--tensor-parallel-size 0", 1),
        ("-tp -2", 1),
        ("--tensor-parallel-size 2 --served-model-name 'not closed", 1),
    ],
)
def test_ranks_are_read_out_of_vllms_options(options: str, ranks: int) -> None:
    assert plan_from({"VLLM_EXTRA_ARGS": options}, cpu=False).generate_ranks == ranks
    assert plan_from({"VLLM_EXTRA_ARGS": options}, cpu=True).generate_ranks == 1  # all of them are on this processor


def test_one_of_two_boxes_counts_half_of_the_weights_and_of_a_text(tmp_path: Path) -> None:
    spark = machine(tmp_path, SPARK, total_gib=121.7, available_gib=112)
    whole, half = (replace(FOUR, kv_cache_gb=None, max_model_len=40_960, generate_ranks=ranks) for ranks in (1, 2))
    vllm = [next(part for part in budget(plan, spark).places[0].parts if part.service == "vllm") for plan in (whole, half)]
    assert vllm[0].fixed_bytes - vllm[1].fixed_bytes == pytest.approx(8.04 * GB / 2 - 1 * GB, rel=0.01)  # and NCCL's buffers
    assert "one of 2 ranks" in vllm[1].detail and "ranks" not in vllm[0].detail
    (problem,) = budget(replace(half, kv_cache_gb=1), spark).problems
    assert "VLLM_KV_CACHE_GB=3.1" in problem.fix  # 40,960 × 72 KiB
    # The only key/value head is on both.
    one_head = {**model_config("Qwen/Qwen3-4B"), "num_key_value_heads": 1}
    assert sequence_bytes(half, one_head) == sequence_bytes(whole, one_head)
    assert sequence_bytes(replace(half, generate_ranks=16), model_config("Qwen/Qwen3-4B")) == sequence_bytes(whole, one_head)


def test_a_model_of_two_boxes_fits_each_of_them(tmp_path: Path) -> None:
    spark = machine(tmp_path, SPARK, total_gib=119.7, available_gib=114)
    large = {**model_config("Qwen/Qwen3-8B"), "num_hidden_layers": 36 * 8, "num_attention_heads": 32}

    def problems(options: str) -> tuple[Problem, ...]:
        values = {"VLLM_MODEL": "large", "VLLM_KV_CACHE_GB": "5", "VLLM_GPU_MEMORY_UTILIZATION": "0.6", "VLLM_EXTRA_ARGS": options}
        plan = plan_from({**values, "EMBED_MEMORY_GB": "18"}, cpu=False)
        return make_budget(plan, lambda model: large if model == "large" else model_config(model), spark).problems

    assert "Not starting" in problems("")[0].message
    assert problems("--tensor-parallel-size 2 --nnodes 2 --node-rank 0") == ()


def suggested(made: Budget) -> dict[str, str]:
    """The KEY=value of every fix."""
    return {key: value for problem in made.problems for key, value in re.findall(r"([A-Z_]+)=([0-9.]+)", problem.fix)}


MODELS = ("Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B")
SIZES = st.integers(1, 400).map(lambda tenths: f"{tenths / 10:g}")


@given(
    values=st.fixed_dictionaries(
        {"EMBED_MODEL": st.sampled_from(MODELS), "RERANK_MODEL": st.sampled_from(MODELS), "VLLM_MODEL": st.sampled_from(MODELS)},
        optional={
            "EMBED_MEMORY_GB": SIZES,
            "VLLM_KV_CACHE_GB": SIZES,
            "VLLM_GPU_MEMORY_UTILIZATION": st.integers(1, 100).map(lambda percent: f"{percent / 100:g}"),
            "VLLM_MAX_MODEL_LEN": st.sampled_from(["2048", "4096", "32768"]),
            "VLLM_GPU": st.just("1"),
            "COMPOSE_PROFILES": st.just(""),
        },
    ),
    mib=st.integers(8_000, 130_000),
    used=st.floats(0, 0.8),
    unified=st.booleans(),
)
def test_a_figure_that_is_suggested_helps(values: dict[str, str], mib: int, used: float, unified: bool) -> None:
    """With every figure that was named nothing is wrong any more but what was to be mended otherwise: by smaller models."""
    size = mib << 20
    own = None if unified else size
    cards = tuple(
        Gpu(i, f"GPU-{i}", "NVIDIA GB10" if unified else "NVIDIA card", own, own and int(size * (1 - used)), "580", (8, 9)) for i in (0, 1)
    )
    box = Hardware("Linux", "amd64", size, int(size * (1 - used)), False, cards)
    made = budget(plan_from(values, cpu=False), box)
    after = budget(plan_from({**values, **suggested(made)}, cpu=False), box)
    assert not suggested(after)
    for problem in (one for one in made.problems if not re.search("[A-Z]=[0-9]", one.fix)):
        assert "smaller" in problem.fix
    assert len(after.problems) == sum(not re.search("[A-Z]=[0-9]", problem.fix) for problem in made.problems)


def on_a_card(values: dict[str, str], mib: int, used_mib: int) -> Budget:
    free = (mib - used_mib) << 20
    box = Hardware("Linux", "amd64", 64 * GIB, 60 * GIB, False, (Gpu(0, "GPU-0", "NVIDIA card", mib << 20, free, "580", (8, 9)),))
    return budget(plan_from(values, cpu=False), box)


SMALL = {"EMBED_MODEL": "Qwen/Qwen3-Embedding-0.6B", "RERANK_MODEL": "Qwen/Qwen3-Reranker-0.6B", "VLLM_MODEL": "Qwen/Qwen3-4B"}


@pytest.mark.parametrize(
    ("figures", "used_mib", "fix"),
    [
        (("3.6", "1.5", "0.80"), 1_200, "set VLLM_GPU_MEMORY_UTILIZATION=0.66 in .env"),  # the fraction is more than vLLM needs
        (("3.6", "1.5", "0.48"), 2_000, "set VLLM_KV_CACHE_GB=0.9 in .env"),  # the fraction has no effect
        (("3.6", "1.5", "0.80"), 2_000, "set VLLM_GPU_MEMORY_UTILIZATION=0.61 and VLLM_KV_CACHE_GB=0.9 in .env"),
        (("3.6", "0.7", "0.48"), 2_500, "set EMBED_MEMORY_GB=3.3 in .env"),  # a smaller KV cache would not hold a text
        (("3.1", "0.7", "0.48"), 3_500, "stop what uses the memory, or choose smaller models"),
    ],
)
def test_the_figure_that_binds_is_named(figures: tuple[str, str, str], used_mib: int, fix: str) -> None:
    keys = ("EMBED_MEMORY_GB", "VLLM_KV_CACHE_GB", "VLLM_GPU_MEMORY_UTILIZATION")
    (problem,) = on_a_card({**SMALL, **dict(zip(keys, figures, strict=True))}, 16_376, used_mib).problems
    assert problem.fix.startswith(fix), problem.fix


def test_a_card_that_is_too_small_for_the_models_is_not_told_to_stop_others() -> None:
    (problem,) = on_a_card({**SMALL, "VLLM_KV_CACHE_GB": "1"}, 8_192, 300).problems
    assert problem.fix.startswith("choose smaller models (qmdctl init)")
    assert "stop" not in problem.fix


def test_a_model_larger_than_the_card_is_not_told_to_take_a_larger_fraction() -> None:
    fixes = [problem.fix for problem in on_a_card({**SMALL, "VLLM_GPU_MEMORY_UTILIZATION": "0.9"}, 8_192, 300).problems]
    assert fixes[0] == "choose a smaller VLLM_MODEL"
    assert not any("UTILIZATION=" in fix for fix in fixes)
