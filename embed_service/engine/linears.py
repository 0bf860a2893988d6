"""On a CPU: linear layers laid out once for oneDNN, with an activation in the same pass, where that is measured to be faster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import torch

ROWS = 256  # tokens of the measurement: a small pack
ROUNDS = 5
ADVANTAGE = 1.03  # times faster that the layout must be
# An encoder's feed-forward block in transformers: the linear layer, and what stands between it and the next.
FEED_FORWARD, ACTIVATION = "dense", "intermediate_act_fn"

log = logging.getLogger(__name__)


class PrepackedLinear(torch.nn.Module):
    """x [..., in] → activation(x @ weight.T + bias) [..., out], the weight in oneDNN's order. `activation`: "none" or "gelu" (by erf)."""

    def __init__(self, linear: torch.nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = linear.bias
        self._activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self._activation, [], "none")
        return out


def prepack(model: torch.nn.Module) -> list[str]:
    """Replace the linear layers of `model` where it pays. Returns what was done: "linear", "gelu", both or neither."""
    done: list[str] = []
    with torch.inference_mode():
        blocks = list(_feed_forwards(model))
        if blocks and _pays(lambda: _fused(blocks[0]), lambda: _apart(blocks[0]), _linear_of(blocks[0])):
            for block in blocks:
                fuse(block)
            done.append("gelu")
        linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        if linears:
            widest = max(linears, key=lambda linear: linear.weight.numel())
            if _pays(lambda: PrepackedLinear(widest), lambda: widest, widest):
                replace_linears(model)
                done.append("linear")
    log.info("linear layers laid out for oneDNN: %s", ", ".join(done) or "none, it would not be faster here")
    return done


def fuse(block: torch.nn.Module) -> None:
    """Compute a feed-forward block's first linear layer and its activation in one pass."""
    setattr(block, FEED_FORWARD, _fused(block))
    setattr(block, ACTIVATION, torch.nn.Identity())


def replace_linears(model: torch.nn.Module) -> None:
    """Lay out every linear layer of `model`; one after the other, so that memory holds one of them twice at most."""
    for name, child in model.named_children():
        if isinstance(child, torch.nn.Linear):
            setattr(model, name, PrepackedLinear(child))
        else:
            replace_linears(child)


def _feed_forwards(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Blocks whose activation is the exact GELU."""
    from transformers.activations import GELUActivation

    for module in model.modules():
        activation = getattr(module, ACTIVATION, None)
        exact = isinstance(activation, GELUActivation) and activation.act is torch.nn.functional.gelu
        if exact and isinstance(getattr(module, FEED_FORWARD, None), torch.nn.Linear):
            yield module


def _linear_of(block: torch.nn.Module) -> torch.nn.Linear:
    linear = getattr(block, FEED_FORWARD)
    assert isinstance(linear, torch.nn.Linear)
    return linear


def _fused(block: torch.nn.Module) -> torch.nn.Module:
    return PrepackedLinear(_linear_of(block), "gelu")


def _apart(block: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(_linear_of(block), getattr(block, ACTIVATION))


def _pays(make: Callable[[], torch.nn.Module], plain: Callable[[], torch.nn.Module], linear: torch.nn.Linear) -> bool:
    """Whether what `make` makes is ADVANTAGE times faster than `plain`, the fastest of ROUNDS turns of each."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        ways = make(), plain()
        x = torch.ones(ROWS, linear.in_features, dtype=linear.weight.dtype)
        fastest = [float("inf"), float("inf")]
        for round_ in range(ROUNDS + 1):  # the first, which sets the kernels up, does not count
            for n, way in enumerate(ways):
                start = time.perf_counter()
                way(x)
                if round_:
                    fastest[n] = min(fastest[n], time.perf_counter() - start)
    except (RuntimeError, AttributeError, NotImplementedError) as error:  # bfloat16 on a processor without its units, for example
        log.debug("oneDNN's layout cannot be used: %s", error)
        return False
    return fastest[1] > ADVANTAGE * fastest[0]
