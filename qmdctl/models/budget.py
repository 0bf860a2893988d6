"""What the stack will take of a device's memory, and whether that is there.

Sizes are bytes; GB is 1e9, GiB 2**30. What each part is from:

    weights      parameters × bytes of the type (size.py), of the checkpoint's own quantisation
    KV cache     VLLM_KV_CACHE_GB; without it what VLLM_GPU_MEMORY_UTILIZATION leaves
    workspace    the activations of one micro-batch (size.py), and for vLLM the logits of a step in float32
    runtime      what a process takes beside that (RUNTIME); for vLLM on several boxes also NCCL's buffers (ranks.py)
    reserve      what the rest of the machine is left (plan.py)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from qmdctl.errors import ConfigurationError
from qmdctl.hardware import Gpu, Hardware
from qmdctl.models.advice import overcommit
from qmdctl.models.plan import GB, Budget, Memory, Part, Place, Plan, Problem
from qmdctl.models.ranks import NCCL_BYTES, kv_of_rank, ranks_of, weights_of_rank
from qmdctl.models.size import BYTES, activation_bytes, kv_bytes_per_token, number, weight_bytes

Config = Mapping[str, Any]

# Estimates, beside weights, KV cache and activations. On a GPU: a CUDA context with its libraries' workspaces, which torch's cap does not
# count; for vLLM also its CUDA graphs. On a CPU: measured, the embed service with MiniLM (its processes' shares without the weights) takes
# 0.8 GB; vLLM's 1.4 GB is what is left of the 3 GB that it took with SmolLM2 in float32 and 1 GiB of KV cache.
RUNTIME: dict[tuple[str, str], int] = {
    ("embed", "gpu"): 600_000_000,
    ("embed", "cpu"): 800_000_000,
    ("vllm", "gpu"): 1_200_000_000,
    ("vllm", "cpu"): 1_400_000_000,
}
VLLM_BATCH_TOKENS = 8_192  # vLLM's own default of --max-num-batched-tokens on a GPU


def plan_from(values: Mapping[str, str], *, cpu: bool) -> Plan:
    """From the settings in force (empty: unset). Raises ValueError with the key's name for what is no number."""

    def given_number(key: str) -> float | None:
        text = values.get(key, "").strip()
        if not text or text.lower() == "auto":
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{key}={text} is not a number")
        return value

    def text(key: str, default: str) -> str:
        return values.get(key, "").strip() or default

    def default_number(key: str, default: float) -> float:
        given = given_number(key)
        return default if given is None else given

    generates = "generation" in values.get("COMPOSE_PROFILES", "generation").split(",")
    return Plan(
        embed_model=text("EMBED_MODEL", "Qwen/Qwen3-Embedding-0.6B" if cpu else "Qwen/Qwen3-Embedding-4B"),
        rerank_model=text("RERANK_MODEL", "Qwen/Qwen3-Reranker-0.6B" if cpu else "Qwen/Qwen3-Reranker-4B"),
        generate_model=text("VLLM_MODEL", "Qwen/Qwen3-0.6B" if cpu else "Qwen/Qwen3-4B") if generates else None,
        cpu=cpu,
        dtype=text("DTYPE", "auto"),
        generate_dtype=text("VLLM_DTYPE", "auto"),
        embed_memory_gb=given_number("EMBED_MEMORY_GB"),
        utilization=default_number("VLLM_GPU_MEMORY_UTILIZATION", 0.2),
        kv_cache_gb=given_number("VLLM_KV_CACHE_GB"),
        max_model_len=int(default_number("VLLM_MAX_MODEL_LEN", 4096)),
        max_num_seqs=int(default_number("VLLM_MAX_NUM_SEQS", 16)),
        max_batch_tokens=int(default_number("MAX_BATCH_TOKENS", 16_384)),
        embed_gpu=text("EMBED_GPU", "0"),
        generate_gpu=text("VLLM_GPU", "0"),
        generate_ranks=1 if cpu else ranks_of(values.get("VLLM_EXTRA_ARGS", "")),
    )


def make_budget(plan: Plan, configs: Callable[[str], Config], hardware: Hardware) -> Budget:
    """The shares on each memory. `configs(model)` may raise ConfigurationError, which passes through; so does an unknown precision."""
    measured = measure(plan, configs, hardware)
    short = [place for place in measured.places if not place.fits]
    problems = [overcommit(place, plan, measured, lambda other: measure(other, configs, hardware)) for place in short]
    return Budget(measured.places, (*measured.problems, *problems))


def measure(plan: Plan, configs: Callable[[str], Config], hardware: Hardware) -> Budget:
    """The shares on each memory, with the figures that are wrong in themselves; whether the sum fits is not looked at."""
    problems: list[Problem] = []
    if plan.cpu or not hardware.gpus or hardware.unified:
        memory: Memory = "cpu" if plan.cpu or not hardware.gpus else "unified"
        parts = _parts(plan, configs, memory, hardware.memory_bytes, problems)
        name = "this machine (MemAvailable)" if memory == "cpu" else f"{hardware.gpus[0].name}'s shared memory (MemAvailable)"
        place = Place(name, memory, hardware.memory_bytes, hardware.available_bytes or None, tuple(parts))
        return Budget((place,), tuple(problems))
    places = []
    embed_gpu, generate_gpu = _card(hardware, plan.embed_gpu), _card(hardware, plan.generate_gpu)
    for gpu in dict.fromkeys((embed_gpu, generate_gpu)):
        total = gpu.memory_bytes or 0
        parts = _parts(plan, configs, "gpu", total, problems, embed=gpu == embed_gpu, generate=gpu == generate_gpu)
        places.append(Place(f"GPU {gpu.index} ({gpu.name})", "gpu", total, gpu.free_bytes, tuple(parts)))
    return Budget(tuple(place for place in places if place.parts), tuple(problems))


def embed_need(plan: Plan, configs: Callable[[str], Config]) -> tuple[int, int]:
    """(bytes of the weights, bytes of one micro-batch's activations) of the embedding model and the reranker."""
    dtype = _embed_dtype(plan)
    models = list(dict.fromkeys(model for model in (plan.embed_model, plan.rerank_model) if model))
    if not models:
        return 0, 0
    made = [configs(model) for model in models]
    return sum(weight_bytes(config, dtype) for config in made), max(activation_bytes(c, plan.max_batch_tokens, dtype) for c in made)


def generate_need(plan: Plan, config: Config) -> tuple[int, int]:
    """(bytes of the weights, bytes of the workspace) of the generation model, on one of its ranks."""
    dtype = _generate_dtype(plan)
    tokens = VLLM_BATCH_TOKENS if plan.max_model_len > VLLM_BATCH_TOKENS else max(plan.max_model_len, 2048)
    logits = plan.max_num_seqs * number(config, "vocab_size") * 4
    # Activations and logits count whole, although most of them is split, so that the plan is never too small.
    return weights_of_rank(weight_bytes(config, dtype), plan.generate_ranks), activation_bytes(config, tokens, dtype) + logits


def sequence_bytes(plan: Plan, config: Config) -> int:
    """KV cache of one sequence of the longest length, on one rank."""
    return kv_of_rank(kv_bytes_per_token(config, _generate_dtype(plan)) * plan.max_model_len, config, plan.generate_ranks)


def _parts(
    plan: Plan,
    configs: Callable[[str], Config],
    memory: Memory,
    total: int,
    problems: list[Problem],
    embed: bool = True,
    generate: bool = True,
) -> list[Part]:
    kind = "cpu" if memory == "cpu" else "gpu"
    parts = []
    if embed and (plan.embed_model or plan.rerank_model):
        parts.append(_embed_part(plan, configs, kind, problems))
    if generate and plan.generate_model:
        parts.append(_generate_part(plan, configs(plan.generate_model), kind, total, problems))
    return parts


def _embed_part(plan: Plan, configs: Callable[[str], Config], kind: str, problems: list[Problem]) -> Part:
    weights, workspace = embed_need(plan, configs)
    runtime, needed = RUNTIME["embed", kind], weights + workspace
    if plan.embed_memory_gb is None or kind == "cpu":  # the cap is torch's on a CUDA device
        return Part("embed", needed + runtime, needed + runtime, _detail(weights=weights, workspace=workspace, runtime=runtime))
    cap = int(plan.embed_memory_gb * GB)
    if cap < needed:
        problems.append(
            Problem(
                "EMBED_MEMORY_GB",
                f"EMBED_MEMORY_GB={plan.embed_memory_gb:g} is less than {plan.embed_model} and {plan.rerank_model} need: "
                f"{weights / GB:.1f} GB of weights and {workspace / GB:.1f} GB for a micro-batch of {plan.max_batch_tokens} tokens",
                f"set EMBED_MEMORY_GB={_up(needed) / GB:g} in .env, or choose smaller models",
            )
        )
        # What is too small counts as what it is to be, so that whether that fits is said at once.
        return Part("embed", _up(needed) + runtime, needed + runtime, _detail(cap=cap, runtime=runtime))
    return Part("embed", cap + runtime, needed + runtime, _detail(cap=cap, runtime=runtime))


def _generate_part(plan: Plan, config: Config, kind: str, total: int, problems: list[Problem]) -> Part:
    weights, workspace = generate_need(plan, config)
    runtime = RUNTIME["vllm", kind] + (NCCL_BYTES if plan.generate_ranks > 1 else 0)
    sequence, ranks = sequence_bytes(plan, config), f" (one of {plan.generate_ranks} ranks)" if plan.generate_ranks > 1 else ""
    fixed = weights + workspace + runtime
    # At its start vLLM refuses unless utilization × total is free, also where the KV cache is given (vLLM 0.12, GPU worker).
    share = 0 if kind == "cpu" else int(plan.utilization * total)
    if plan.kv_cache_gb is not None or kind == "cpu":
        kv = int((1 if plan.kv_cache_gb is None else plan.kv_cache_gb) * GB)
        detail = _detail(weights=weights, kv_cache=kv, workspace=workspace, runtime=runtime) + ranks
        return Part("vllm", max(share, fixed + _with_sequence(plan, kv, sequence, problems)), fixed, detail)
    detail = _detail(weights=weights, kv_cache=max(0, share - fixed), workspace=workspace, runtime=runtime) + ranks
    if share < fixed + sequence:
        least = math.ceil(100 * (fixed + sequence) / total) / 100 if total else 1.0
        raised = f"set VLLM_GPU_MEMORY_UTILIZATION={least:.2f} in .env, or " if least < 1 else ""
        share = max(int(least * total), fixed + sequence)
        problems.append(
            Problem(
                "VLLM_GPU_MEMORY_UTILIZATION",
                f"VLLM_GPU_MEMORY_UTILIZATION={plan.utilization:g} gives vLLM {plan.utilization * total / GB:.1f} GB, but "
                f"{plan.generate_model} needs {fixed / GB:.1f} GB and {sequence / GB:.1f} GB of KV cache for one text of "
                f"{plan.max_model_len} tokens",
                f"{raised}choose a smaller VLLM_MODEL",
            )
        )
    return Part("vllm", share, fixed, detail)


def _with_sequence(plan: Plan, kv: int, sequence: int, problems: list[Problem]) -> int:
    """The bytes of a KV cache, or of one that holds a text of the longest length where this does not."""
    if kv < sequence:
        problems.append(
            Problem(
                "VLLM_KV_CACHE_GB",
                f"the KV cache of {kv / GB:.1f} GB does not hold one text of VLLM_MAX_MODEL_LEN={plan.max_model_len} tokens "
                f"({sequence / GB:.1f} GB for {plan.generate_model})",
                f"set VLLM_KV_CACHE_GB={_up(sequence) / GB:g} in .env, or lower VLLM_MAX_MODEL_LEN",
            )
        )
        return _up(sequence)
    return kv


def _card(hardware: Hardware, name: str) -> Gpu:
    return hardware.gpu(name) or hardware.gpus[0]


def _embed_dtype(plan: Plan) -> str:
    """On a CPU the larger of the two that the service chooses from."""
    return _dtype("DTYPE", plan.dtype, plan.cpu, ("bfloat16", "float32"))


def _generate_dtype(plan: Plan) -> str:
    return _dtype("VLLM_DTYPE", plan.generate_dtype, plan.cpu, tuple(BYTES))


def _dtype(key: str, value: str, cpu: bool, known: tuple[str, ...]) -> str:
    """ConfigurationError for a precision that the service would refuse."""
    if value in ("", "auto"):
        return "float32" if cpu else "bfloat16"
    if value not in known:
        raise ConfigurationError(f"{key}={value} is not a precision", f"set {key} to auto, {', '.join(known[:-1])} or {known[-1]}")
    return value


def _detail(**sizes: int) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {size / GB:.1f} GB" for name, size in sizes.items())


def _up(size: int) -> int:
    """To a whole 0.1 GB, rounded up."""
    return -(-size // (GB // 10)) * (GB // 10)
