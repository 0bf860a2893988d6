"""The checks before a start, cheapest first. Each is a file with `check(context)`, which yields findings or raises Unavailable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module

from qmdctl.checks.context import Context, Unavailable
from qmdctl.checks.finding import Finding
from qmdctl.errors import ConfigurationError, QmdError

__all__ = ["NAMES", "RUNNING", "Context", "Finding", "exit_code", "run_checks"]

# In this order: what fails first explains what follows.
NAMES = (
    "engine",
    "compose_version",
    "env_lint",
    "rootless",
    "secrets",
    "ports",
    "generation",
    "tailnet_settings",
    "tailnet_key",
    "tailnet_serve",
    "tailnet_ports",
    "wsl",
    "gpu_host",
    "compute_capability",
    "driver",
    "toolkit",
    "architecture",
    "vllm_age",
    "disk",
    "memory",
    "models",
    "cache_volume",
    "gpu_container",
)
# Of what runs already: for `doctor` alone, since a start is what mends most of it.
RUNNING = ("tailnet_running",)
GPU_ONLY = frozenset({"gpu_host", "compute_capability", "driver", "toolkit", "gpu_container"})
# They look at this machine, which says nothing about an engine elsewhere.
LOCAL_ONLY = frozenset(
    {
        *("rootless", "secrets", "ports", "tailnet_key", "tailnet_ports"),
        *("wsl", "gpu_host", "compute_capability", "driver", "disk", "memory"),
    }
)


def run_checks(context: Context, names: Sequence[str] = NAMES) -> Iterator[Finding]:
    """The findings, one by one. A check whose ground is missing is skipped, and says so; one that breaks does not end the others."""
    for name in names:
        if name in GPU_ONLY and not context.gpu_mode:
            yield Finding(name, "skipped", "the stack runs without a GPU")
            continue
        try:
            if name in LOCAL_ONLY and context.remote:
                raise Unavailable("the engine runs on another machine")
            yield from import_module(f"qmdctl.checks.{name}").check(context)
        except Unavailable as reason:
            yield Finding(name, "skipped", str(reason))
        except QmdError as error:
            yield Finding(name, "failure", error.message, error.details, error.fix, isinstance(error, ConfigurationError))
        except OSError as error:  # a file that cannot be looked at, an engine that does not answer in time
            yield Finding(name, "warning", f"this could not be checked: {error}")


def exit_code(findings: Sequence[Finding]) -> int:
    """0, 2 when what failed is configuration alone, else 3."""
    failures = [finding for finding in findings if finding.level == "failure"]
    if not failures:
        return 0
    return 2 if all(finding.configuration for finding in failures) else 3
