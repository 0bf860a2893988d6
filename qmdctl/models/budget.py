"""What the stack will take of a device's memory, and whether that is there.

Sizes are bytes; GB is 1e9, GiB 2**30. What each part is from:

    weights      parameters × bytes of the type (size.py), of the checkpoint's own quantisation
    KV cache     VLLM_KV_CACHE_GB; without it what VLLM_GPU_MEMORY_UTILIZATION leaves
    workspace    the activations of one micro-batch (size.py), and for vLLM the logits of a step in float32
    runtime      what a process takes beside that (RUNTIME)
    reserve      what the rest of the machine is left (RESERVE)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qmdctl.hardware import Gpu, Hardware
from qmdctl.models.size import activation_bytes, kv_bytes_per_token, weight_bytes

GB = 10**9
GIB = 1 << 30
Memory = Literal["gpu", "unified", "cpu"]
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
# Left to the system. On unified memory an overcommit does not fail but hangs the host (vLLM#46307), so more is left there.
RESERVE: dict[Memory, int] = {"gpu": 300_000_000, "unified": 12 * GIB, "cpu": 2 * GIB}
VLLM_BATCH_TOKENS = 8_192  # vLLM's own default of --max-num-batched-tokens on a GPU


@dataclass(frozen=True)
class Part:
    """One service's share. `detail` says what it is made of."""

    service: str
    bytes: int
    detail: str


@dataclass(frozen=True)
class Place:
    """One memory that services share: a card, or the machine's own. `available_bytes` None where nothing tells it."""

    name: str
    memory: Memory
    total_bytes: int
    available_bytes: int | None
    parts: tuple[Part, ...]

    @property
    def reserve_bytes(self) -> int:
        return RESERVE[self.memory]

    @property
    def planned_bytes(self) -> int:
        return sum(part.bytes for part in self.parts) + self.reserve_bytes

    @property
    def fits(self) -> bool:
        return self.available_bytes is None or self.planned_bytes <= self.available_bytes

    def sentence(self) -> str:
        """Planned: embed 18.1 + vllm 16.2 + reserve 12.0 = 46.3 GB; available on … 31.0 GB."""
        sums = " + ".join(f"{part.service} {part.bytes / GB:.1f}" for part in self.parts)
        there = "unknown" if self.available_bytes is None else f"{self.available_bytes / GB:.1f} GB"
        return (
            f"Planned: {sums} + reserve {self.reserve_bytes / GB:.1f} = {self.planned_bytes / GB:.1f} GB; available on {self.name}: {there}"
        )


@dataclass(frozen=True)
class Problem:
    """`setting` is the key to change."""

    setting: str
    message: str
    fix: str


@dataclass(frozen=True)
class Budget:
    places: tuple[Place, ...]
    problems: tuple[Problem, ...] = field(default=())


@dataclass(frozen=True)
class Plan:
    """The settings that memory depends on, as they are in force; `configs` gives a model's config.json. None: the service does not run."""

    embed_model: str | None
    rerank_model: str | None
    generate_model: str | None
    cpu: bool = False
    dtype: str = "auto"
    generate_dtype: str = "auto"
    embed_memory_gb: float | None = None
    utilization: float = 0.2
    kv_cache_gb: float | None = None
    max_model_len: int = 4096
    max_num_seqs: int = 16
    max_batch_tokens: int = 16_384
    embed_gpu: str = "0"
    generate_gpu: str = "0"


def plan_from(values: Mapping[str, str], *, cpu: bool) -> Plan:
    """From the settings in force (empty: unset). Raises ValueError with the key's name for what is no number."""

    def number(key: str) -> float | None:
        text = values.get(key, "").strip()
        try:
            return float(text) if text and text != "auto" else None
        except ValueError:
            raise ValueError(f"{key}={text} is not a number") from None

    def text(key: str, default: str) -> str:
        return values.get(key, "").strip() or default

    def default_number(key: str, default: float) -> float:
        given = number(key)
        return default if given is None else given

    generates = "generation" in values.get("COMPOSE_PROFILES", "generation").split(",")
    return Plan(
        embed_model=text("EMBED_MODEL", "Qwen/Qwen3-Embedding-0.6B" if cpu else "Qwen/Qwen3-Embedding-4B"),
        rerank_model=text("RERANK_MODEL", "Qwen/Qwen3-Reranker-0.6B" if cpu else "Qwen/Qwen3-Reranker-4B"),
        generate_model=text("VLLM_MODEL", "Qwen/Qwen3-0.6B" if cpu else "Qwen/Qwen3-4B") if generates else None,
        cpu=cpu,
        dtype=text("DTYPE", "auto"),
        generate_dtype=text("VLLM_DTYPE", "auto"),
        embed_memory_gb=number("EMBED_MEMORY_GB"),
        utilization=default_number("VLLM_GPU_MEMORY_UTILIZATION", 0.2),
        kv_cache_gb=number("VLLM_KV_CACHE_GB"),
        max_model_len=int(default_number("VLLM_MAX_MODEL_LEN", 4096)),
        max_num_seqs=int(default_number("VLLM_MAX_NUM_SEQS", 16)),
        max_batch_tokens=int(default_number("MAX_BATCH_TOKENS", 16_384)),
        embed_gpu=text("EMBED_GPU", "0"),
        generate_gpu=text("VLLM_GPU", "0"),
    )


def make_budget(plan: Plan, configs: Callable[[str], Config], hardware: Hardware) -> Budget:
    """The shares on each memory. `configs(model)` may raise ConfigurationError, which passes through."""
    problems: list[Problem] = []
    if plan.cpu or not hardware.gpus or hardware.unified:
        memory: Memory = "cpu" if plan.cpu or not hardware.gpus else "unified"
        parts = _parts(plan, configs, memory, hardware.memory_bytes, problems)
        name = "this machine (MemAvailable)" if memory == "cpu" else f"{hardware.gpus[0].name}'s shared memory (MemAvailable)"
        place = Place(name, memory, hardware.memory_bytes, hardware.available_bytes or None, tuple(parts))
        return Budget((place,), (*problems, *_overcommit(place, plan)))
    places = []
    embed_gpu, generate_gpu = _card(hardware, plan.embed_gpu), _card(hardware, plan.generate_gpu)
    for gpu in dict.fromkeys((embed_gpu, generate_gpu)):
        total = gpu.memory_bytes or 0
        parts = _parts(plan, configs, "gpu", total, problems, embed=gpu == embed_gpu, generate=gpu == generate_gpu)
        places.append(Place(f"GPU {gpu.index} ({gpu.name})", "gpu", total, gpu.free_bytes, tuple(parts)))
    for place in places:
        problems.extend(_overcommit(place, plan))
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
    """(bytes of the weights, bytes of the workspace) of the generation model."""
    dtype = _generate_dtype(plan)
    tokens = VLLM_BATCH_TOKENS if plan.max_model_len > VLLM_BATCH_TOKENS else max(plan.max_model_len, 2048)
    logits = plan.max_num_seqs * int(config["vocab_size"]) * 4
    return weight_bytes(config, dtype), activation_bytes(config, tokens, dtype) + logits


def sequence_bytes(plan: Plan, config: Config) -> int:
    """KV cache of one sequence of the longest length."""
    return kv_bytes_per_token(config, _generate_dtype(plan)) * plan.max_model_len


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
    runtime = RUNTIME["embed", kind]
    if plan.embed_memory_gb is None or kind == "cpu":  # the cap is torch's on a CUDA device
        return Part("embed", weights + workspace + runtime, _detail(weights=weights, workspace=workspace, runtime=runtime))
    cap = int(plan.embed_memory_gb * GB)
    needed = weights + workspace
    if cap < needed:
        problems.append(
            Problem(
                "EMBED_MEMORY_GB",
                f"EMBED_MEMORY_GB={plan.embed_memory_gb:g} is less than {plan.embed_model} and {plan.rerank_model} need: "
                f"{weights / GB:.1f} GB of weights and {workspace / GB:.1f} GB for a micro-batch of {plan.max_batch_tokens} tokens",
                f"set EMBED_MEMORY_GB={_up(needed)} in .env, or choose smaller models",
            )
        )
    return Part("embed", max(cap, weights) + runtime, _detail(cap=cap, runtime=runtime))


def _generate_part(plan: Plan, config: Config, kind: str, total: int, problems: list[Problem]) -> Part:
    weights, workspace = generate_need(plan, config)
    runtime, sequence = RUNTIME["vllm", kind], sequence_bytes(plan, config)
    if kind == "cpu":
        kv = int((plan.kv_cache_gb or 1) * GB)
        _require_sequence(plan, kv, sequence, problems)
        detail = _detail(weights=weights, kv_cache=kv, workspace=workspace, runtime=runtime)
        return Part("vllm", weights + kv + workspace + runtime, detail)
    # At its start vLLM refuses unless utilization × total is free, also where the KV cache is given (vLLM 0.12, GPU worker).
    share = int(plan.utilization * total)
    fixed = weights + workspace + runtime
    if plan.kv_cache_gb is not None:
        kv = int(plan.kv_cache_gb * GB)
        _require_sequence(plan, kv, sequence, problems)
        return Part("vllm", max(share, fixed + kv), _detail(weights=weights, kv_cache=kv, workspace=workspace, runtime=runtime))
    if share < fixed + sequence:
        least = (fixed + sequence) / total if total else 1.0
        problems.append(
            Problem(
                "VLLM_GPU_MEMORY_UTILIZATION",
                f"VLLM_GPU_MEMORY_UTILIZATION={plan.utilization:g} gives vLLM {share / GB:.1f} GB, but {plan.generate_model} needs "
                f"{fixed / GB:.1f} GB and {sequence / GB:.1f} GB of KV cache for one text of {plan.max_model_len} tokens",
                f"set VLLM_GPU_MEMORY_UTILIZATION={min(least + 0.005, 0.99):.2f} in .env, or choose a smaller VLLM_MODEL",
            )
        )
    return Part("vllm", max(share, fixed), _detail(weights=weights, kv_cache=max(0, share - fixed), workspace=workspace, runtime=runtime))


def _require_sequence(plan: Plan, kv: int, sequence: int, problems: list[Problem]) -> None:
    if kv < sequence:
        problems.append(
            Problem(
                "VLLM_KV_CACHE_GB",
                f"the KV cache of {kv / GB:.1f} GB does not hold one text of VLLM_MAX_MODEL_LEN={plan.max_model_len} tokens "
                f"({sequence / GB:.1f} GB for {plan.generate_model})",
                f"set VLLM_KV_CACHE_GB={_up(sequence)} in .env, or lower VLLM_MAX_MODEL_LEN",
            )
        )


def _overcommit(place: Place, plan: Plan) -> list[Problem]:
    if place.fits or place.available_bytes is None:
        return []
    over = place.planned_bytes - place.available_bytes
    by_size = sorted(place.parts, key=lambda part: -part.bytes)
    first = by_size[0]
    left = first.bytes - over
    if first.service == "vllm" and place.memory != "cpu" and place.total_bytes:
        setting = "VLLM_GPU_MEMORY_UTILIZATION"
        fix = f"lower VLLM_GPU_MEMORY_UTILIZATION to {max(left, 0) / place.total_bytes:.2f}"
    elif place.memory != "cpu":
        setting = "EMBED_MEMORY_GB"
        fix = f"lower EMBED_MEMORY_GB to {max(0, left - RUNTIME['embed', 'gpu']) / GB:.1f}"
    else:
        setting, fix = "EMBED_MODEL", ""
    stop = f"stop what uses the memory, or choose smaller models (qmdctl init): {over / GB:.1f} GB are missing"
    fix = f"{fix} in .env if that still holds the model, or {stop}" if fix else stop
    return [Problem(setting, f"{place.sentence()}. Not starting", fix)]


def _card(hardware: Hardware, name: str) -> Gpu:
    return hardware.gpu(name) or hardware.gpus[0]


def _embed_dtype(plan: Plan) -> str:
    if plan.dtype != "auto":
        return plan.dtype
    return "float32" if plan.cpu else "bfloat16"  # on a CPU the larger of the two that the service chooses from


def _generate_dtype(plan: Plan) -> str:
    if plan.generate_dtype not in ("", "auto"):
        return plan.generate_dtype
    return "float32" if plan.cpu else "bfloat16"


def _detail(**sizes: int) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {size / GB:.1f} GB" for name, size in sizes.items())


def _up(size: int) -> str:
    """Bytes as GB with one decimal, rounded up."""
    return f"{-(-size // (GB // 10)) / 10:g}"
