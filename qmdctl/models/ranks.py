"""Tensor parallelism: how many devices share the generation model, and how much of it each has.

The stack gives vLLM one device of a box, so that its ranks are on a box each.
"""

from __future__ import annotations

import argparse
import math
import shlex

from qmdctl.models.plan import GB
from qmdctl.models.size import Config, key_value_heads

NCCL_BYTES = 1 * GB  # an estimate: the buffers of its channels


def ranks_of(options: str) -> int:
    """--tensor-parallel-size of VLLM_EXTRA_ARGS, as vLLM reads it (the last one counts); 1 where it is not there or is no size."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--tensor-parallel-size", "--tensor_parallel_size", "-tp", dest="size", nargs="?")
    try:
        size = parser.parse_known_args(shlex.split(options))[0].size or ""
    except (ValueError, argparse.ArgumentError):  # quotes that are not closed: vllm/start.py says so
        return 1
    return max(int(size), 1) if size.isascii() and size.isdecimal() else 1


def weights_of_rank(weights: int, ranks: int) -> int:
    """Linear layers, embedding table and head are split."""
    return math.ceil(weights / ranks)


def kv_of_rank(kv_bytes: int, config: Config, ranks: int) -> int:
    """A key/value head is on one rank, or on several where there are more ranks than heads."""
    return math.ceil(kv_bytes / min(ranks, key_value_heads(config)))
