"""Attention within each sequence of a pack, registered with transformers under the name "packed".

A model that is loaded with this name and called with `pack=` computes everything else as it always does; it need not know where a sequence
ends. Where several sequences share a prefix, their tokens also attend to its keys and values, which are not part of the pack.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from embed_service.engine.memory import is_out_of_memory
from embed_service.engine.pack import Pack

NAME = "packed"
CAUSAL_WINDOW = (-1, 0)  # any number of keys to the left, none to the right
TOLERANCE = 2e-2  # of bfloat16 attention over random keys, against float32


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    pack: Pack,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, tokens, size], key and value [1, key-value heads, tokens, size] → [1, tokens, heads, size].

    `attention_mask` is None: transformers makes none for an attention that it has no mask function for.
    """
    if pack.capture:
        parts = zip(torch.split(key, pack.lengths, 2), torch.split(value, pack.lengths, 2), strict=True)
        for prefix, (keys, values) in zip(pack.capture, parts, strict=True):
            prefix.layers[_layer(module)] = keys.clone(), values.clone()
    if pack.varlen:
        return _varlen(module, query, key, value, pack, scaling)[None], None
    out = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    if not pack.followers:
        grouped = query.shape[1] != key.shape[1]
        if grouped and query.device.type == "cuda" and query.dtype == torch.float32:
            # No kernel takes grouped heads in float32 but the one that writes all scores to memory.
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
            grouped = False
        for run in pack.runs:
            own = scaled_dot_product_attention(
                run.of(query), run.of(key), run.of(value), is_causal=pack.causal, scale=scaling, enable_gqa=grouped
            )
            out[run.start : run.stop] = own.transpose(1, 2).flatten(0, 1)
        return out[None], None
    weight = query.new_empty(query.shape[1], query.shape[2], dtype=torch.float32)  # log-sum-exp of the scores: [heads, tokens]
    for run in pack.runs:
        own, sums = _with_sums(run.of(query), run.of(key), run.of(value), pack.causal, scaling)
        out[run.start : run.stop] = own.transpose(1, 2).flatten(0, 1)
        weight[:, run.start : run.stop] = sums.transpose(0, 1).flatten(1)
    for follower in pack.followers:
        part = slice(follower.start, follower.stop)
        keys, values = pack.prefixes[follower.prefix_ids].layers[_layer(module)]
        before, sums = _with_sums(query[:, :, part], keys, values, False, scaling)
        share = torch.sigmoid(sums[0] - weight[:, part]).transpose(0, 1)[:, :, None].to(out.dtype)
        out[part].lerp_(before[0].transpose(0, 1), share)
    return out[None], None


def register() -> None:
    """Make the name known to transformers. Any number of times."""
    AttentionInterface.register(NAME, packed_attention)


def shares_prefixes(device: torch.device, varlen: bool) -> bool:
    """Whether a prefix can be shared here: the attention must take more keys than queries, or give the log-sum-exp of its scores."""
    return varlen or device.type == "cpu"


def varlen_works() -> str | None:
    """None where torch's varlen attention computes what it should on this GPU; else why it does not.

    Tried on sequences of unequal length and with more keys than queries: a causal mask must then end at the last key.
    """
    try:
        return _tried("cuda")
    except (ImportError, AssertionError, RuntimeError, TypeError, ValueError) as error:  # not built for this GPU, or a torch without it
        if is_out_of_memory(error):
            raise  # another program has the memory now: the next start may find it free
        return str(error).strip().partition("\n")[0] or type(error).__name__


def _tried(device: str) -> str | None:
    generator = torch.Generator(device).manual_seed(0)
    lengths, more = [5, 130, 64], 33
    total = sum(lengths)

    def random(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, 128, device=device, dtype=torch.bfloat16, generator=generator)

    def cumulative(sizes: list[int]) -> torch.Tensor:
        return torch.tensor([0, *sizes], device=device).cumsum(0).to(torch.int32)

    query, key, value = random(total, 4), random(total + more * len(lengths), 2), random(total + more * len(lengths), 2)
    key_lengths = [length + more for length in lengths]
    out = _call_varlen(query, key, value, cumulative(lengths), cumulative(key_lengths), max(lengths), max(key_lengths), True, None)
    parts = torch.split(query, lengths), torch.split(key, key_lengths), torch.split(value, key_lengths), torch.split(out, lengths)
    for q, k, v, o in zip(*parts, strict=True):
        mask = torch.ones(len(q), len(k), dtype=torch.bool, device=device).tril(len(k) - len(q))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        q, k, v = (x.float().transpose(0, 1)[None] for x in (q, k, v))
        expected = scaled_dot_product_attention(q, k, v, attn_mask=mask)[0]
        if (expected.transpose(0, 1) - o.float()).abs().max() > TOLERANCE:
            return "it computes something else than scaled-dot-product attention"
    return None


def _varlen(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pack: Pack, scaling: float | None
) -> torch.Tensor:
    cu_keys, longest = pack.cu_seqlens, max(pack.lengths)
    longest_key = longest
    if pack.joined is not None:
        layers = [pack.prefixes[follower.prefix_ids].layers[_layer(module)] for follower in pack.followers]
        key = torch.cat([*(keys for keys, _ in layers), key], 2)[:, :, pack.joined.index]
        value = torch.cat([*(values for _, values in layers), value], 2)[:, :, pack.joined.index]
        cu_keys, longest_key = pack.joined.cu_seqlens, pack.joined.longest
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return _call_varlen(q, k, v, pack.cu_seqlens, cu_keys, longest, longest_key, pack.causal, scaling)


def _call_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_keys: torch.Tensor,
    longest_query: int,
    longest_key: int,
    causal: bool,
    scaling: float | None,
) -> torch.Tensor:
    """query [tokens, heads, size], key and value [keys, key-value heads, size] → [tokens, heads, size]."""
    varlen_attn, takes_groups = _torch_varlen()
    options: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if takes_groups:
            options["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        cu_queries,
        cu_keys,
        longest_query,
        longest_key,
        scale=scaling,
        window_size=CAUSAL_WINDOW if causal else (-1, -1),
        **options,
    )
    assert isinstance(out, torch.Tensor)
    return out


@cache
def _torch_varlen() -> tuple[Callable[..., Any], bool]:
    """torch's function, and whether it takes fewer heads of keys than of queries (torch 2.11 does not)."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


def _with_sums(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [n, heads, length, size] and the log-sum-exp of its scores, float32 [n, heads, length]; CPU only."""
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scaling)
    return out, sums


def _layer(module: torch.nn.Module) -> int:
    index = module.layer_idx
    assert isinstance(index, int)
    return index
