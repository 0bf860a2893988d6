"""What each of two boxes holds of a model that is split between them, and the figures for vLLM that follow. Sizes are bytes.

Tensor parallelism gives each box half of every linear layer, of the embedding table, and of the key/value heads. What is not halved here is
counted whole, so that the plan is never too small: the activations, and the logits, which the head gathers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qmdctl.errors import ConfigurationError
from qmdctl.models.budget import RUNTIME, VLLM_BATCH_TOKENS, embed_need
from qmdctl.models.plan import GB, GIB, RESERVE, Part, Place, Plan
from qmdctl.models.ranks import NCCL_BYTES
from qmdctl.models.size import activation_bytes, key_value_heads, kv_bytes_per_token, number, weight_bytes
from qmdctl.scale.boxes import ROLES, Role, Way

Config = Mapping[str, Any]
BOXES = 2
RAY_BYTES = 700_000_000  # an estimate: its processes on a box; its object store is OBJECT_STORE_BYTES
OBJECT_STORE_BYTES = 1 * GIB
LARGEST_UTILIZATION = 0.90
TENTH = GB // 10


@dataclass(frozen=True)
class Model:
    """What is split. `kv_bytes` are of one token, of all layers and heads; `heads` None where no config.json tells them."""

    name: str
    weights: int
    kv_bytes: int
    activations: int
    heads: tuple[int, int] | None = None  # (attention, key/value)


@dataclass(frozen=True)
class Share:
    """One box: `place` says what is on it; the rest are vLLM's settings."""

    role: Role
    place: Place
    utilization: float
    kv_cache_gb: float

    @property
    def fits(self) -> bool:
        return self.place.fits and self.utilization <= LARGEST_UTILIZATION


def read_model(name: str, config: Config | None, plan: Plan, weights_gb: float | None, kv_bytes: int | None) -> Model:
    """The sizes from a config.json, or as given. ConfigurationError where neither tells them, or the heads cannot be halved."""
    given = None if weights_gb is None else int(weights_gb * GB)
    if config is None:
        if given is None or kv_bytes is None:
            raise ConfigurationError(
                f"--model: the size of {name} is not known here",
                "--config FILE (its config.json), or qmdctl pull, or both --weights-gb N and --kv-bytes-per-token N",
            )
        return Model(name, given, kv_bytes, 0)
    heads = (number(config, "num_attention_heads"), key_value_heads(config))
    if heads[0] % BOXES or (heads[1] > 1 and heads[1] % BOXES):
        raise ConfigurationError(
            f"--model: {name} has {heads[0]} attention heads and {heads[1]} key/value heads, which two boxes cannot halve",
            "choose another model",
        )
    dtype = "bfloat16" if plan.generate_dtype in ("", "auto") else plan.generate_dtype
    try:
        weights = weight_bytes(config, dtype) if given is None else given
    except ConfigurationError as error:
        raise ConfigurationError(f"--model: {name}: {error.message}", "--weights-gb N: the size of its *.safetensors on the hub") from None
    tokens = VLLM_BATCH_TOKENS if plan.max_model_len > VLLM_BATCH_TOKENS else max(plan.max_model_len, 2048)
    logits = plan.max_num_seqs * number(config, "vocab_size") * 4
    return Model(name, weights, kv_bytes or kv_bytes_per_token(config, dtype), activation_bytes(config, tokens, dtype) + logits, heads)


def share_out(
    model: Model, plan: Plan, memory_bytes: int, way: Way, embed_on: Role | None, configs: Callable[[str], Config]
) -> list[Share]:
    """Head and worker, with the same figures for vLLM on both. ConfigurationError where it does not fit, with a figure that would."""
    halved = BOXES if model.heads is None or model.heads[1] > 1 else 1  # a single key/value head is on both
    one = math.ceil(model.kv_bytes * plan.max_model_len / halved)
    sequence = _up(one)  # a cache that does not hold one text of the longest length is refused by vLLM
    kv = max(_up(int(plan.kv_cache_gb * GB) if plan.kv_cache_gb else plan.max_num_seqs * one), sequence)
    embed = _embed(plan, configs) if embed_on else None

    def shares(kv: int) -> list[Share]:
        made = [_share(role, model, kv, halved, memory_bytes, way, embed if role == embed_on else None) for role in ROLES]
        return [share for share in made if not share.fits] or made

    found = shares(kv)
    if not found[0].fits:
        less = next((size for size in range(kv - TENTH, sequence - 1, -TENTH) if shares(size)[0].fits), None)
        raise ConfigurationError(*_too_large(found[0], model, kv, less))
    return found


def _share(role: Role, model: Model, kv: int, halved: int, memory_bytes: int, way: Way, embed: Part | None) -> Share:
    runtime = RUNTIME["vllm", "gpu"] + NCCL_BYTES
    fixed = math.ceil(model.weights / BOXES) + model.activations + runtime
    utilization = math.ceil(100 * (fixed + kv) / memory_bytes) / 100
    detail = (
        f"half of {model.weights / GB:.1f} GB of weights, KV cache {kv / GB:.1f} GB ({model.kv_bytes // halved} bytes a token), "
        f"activations {model.activations / GB:.1f} GB, runtime and NCCL {runtime / GB:.1f} GB"
    )
    parts = [Part("vllm", max(fixed + kv, int(utilization * memory_bytes)), fixed, detail)]
    if way == "ray":
        ray = RAY_BYTES + OBJECT_STORE_BYTES
        parts.append(Part("ray", ray, ray, "object store and processes"))
    if embed is not None:
        parts.append(embed)
    return Share(role, Place(f"the {role}", "unified", memory_bytes, memory_bytes, tuple(parts)), utilization, kv / GB)


def _up(size: int) -> int:
    """To a whole 0.1 GB, rounded up."""
    return -(-size // TENTH) * TENTH


def one_box(model: Model, plan: Plan, memory_bytes: int) -> bool:
    """Whether the model would fit on one box alone, beside nothing."""
    kv = model.kv_bytes * plan.max_model_len
    return model.weights + model.activations + RUNTIME["vllm", "gpu"] + kv + RESERVE["unified"] <= memory_bytes


def _embed(plan: Plan, configs: Callable[[str], Config]) -> Part:
    weights, workspace = embed_need(replace(plan, cpu=False), configs)
    cap = int(plan.embed_memory_gb * GB) if plan.embed_memory_gb else weights + workspace
    return Part("embed", cap + RUNTIME["embed", "gpu"], cap, f"{plan.embed_model} and {plan.rerank_model}")


def _too_large(share: Share, model: Model, kv: int, less: int | None) -> tuple[str, str]:
    over = share.place.planned_bytes - share.place.total_bytes
    fixes = []
    if less is not None:
        fixes.append(f"--kv-cache-gb {less / GB:g} (of {kv / GB:.1f}), or a lower --max-num-seqs or --max-model-len")
    if any(part.service == "embed" for part in share.place.parts):
        fixes.append("--embed-on none, with the embed service on a box of its own")
    fixes.append("a quantised checkpoint (FP8, AWQ), or a smaller model")
    missing = f"{over / GB:.1f} GB are missing" if over > 0 else f"vLLM would take more than {LARGEST_UTILIZATION:.0%} of the box"
    return f"--model: {model.name} does not fit on two such boxes. {share.place.sentence()}: {missing}", "; or ".join(fixes)
