"""Whether a container sees the GPU: `nvidia-smi -L` in one of the stack's own images, with the reservation that the stack makes."""

from __future__ import annotations

from collections.abc import Iterator

from qmdctl.checks.context import GPU_KEYS, Context, Unavailable
from qmdctl.checks.finding import Finding
from qmdctl.symptoms import match

LIMIT_SECONDS = 60
RESTART = "sudo systemctl restart docker; if it persists: nvidia-ctk cdi list, sudo systemctl restart nvidia-cdi-refresh"


def check(context: Context) -> Iterator[Finding]:
    if any(container.ready for container in context.containers.values()):
        raise Unavailable("the stack is running")
    service = next((name for name in ("embed", "vllm") if name in context.images), None)
    if service is None:
        raise Unavailable("neither image is here yet")
    gpu = context.settings[GPU_KEYS[service]]
    command = [
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--gpus",
        f'"device={gpu}"',
        "--entrypoint",
        "nvidia-smi",
        context.image(service),
        "-L",
    ]
    done = context.run(command, check=False, timeout_seconds=LIMIT_SECONDS)
    if done.ok and "GPU" in done.stdout:
        yield Finding("gpu_container", "ok", f"a container sees {done.stdout.strip().splitlines()[0].split(' (UUID')[0]}")
        return
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    symptom = match("compose", said, context.settings)
    if symptom:
        yield Finding("gpu_container", "failure", symptom.cause, said[-1] if said else "", symptom.fix)
    elif not context.remote and context.hardware.gpus:
        what = f"the host sees {context.hardware.gpus[0].name}, a container does not"
        yield Finding("gpu_container", "failure", what, said[-1] if said else f"status {done.returncode}", RESTART)
    else:
        yield Finding(
            "gpu_container", "failure", "a container does not see a GPU", said[-1] if said else "", "mend what gpu_host says first"
        )
