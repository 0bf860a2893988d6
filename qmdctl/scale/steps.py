"""What to type on which box, in order, and what to see before the next step."""

from __future__ import annotations

from dataclasses import dataclass, field

from qmdctl.scale.boxes import API_PORT, MASTER_PORT, RAY_PORT, Boxes
from qmdctl.scale.render import ENV, NETPLAN, OVERRIDE, firewall

BOTH = "both"


@dataclass(frozen=True)
class Step:
    """`where`: head, worker or both. `see` is what has to be there before the next one."""

    title: str
    where: str
    commands: list[str] = field(default_factory=list)
    see: str = ""

    def payload(self) -> dict[str, object]:
        return {"title": self.title, "where": self.where, "commands": self.commands, "see": self.see or None}


def steps(boxes: Boxes, embed_on_head: bool) -> list[Step]:
    interface, worker_interface = boxes.interface, boxes.interface_of("worker")
    made = [
        Step(
            "The cable",
            BOTH,
            ["ibdev2netdev", f"ip -br link show {interface}"],
            f"{interface} (Up){f', on the worker {worker_interface}' if worker_interface != interface else ''}; same port on both boxes",
        ),
        Step(
            "An address on it",
            BOTH,
            [f"sudo install -m 600 {NETPLAN} /etc/netplan/{NETPLAN}", "sudo netplan apply", f"ip -br address show {interface}"],
            f"{boxes.head} on the head, {boxes.worker} on the worker",
        ),
        Step("The way", "head", [f"ping -c 3 -M do -s 8972 {boxes.worker}"], "three answers: packets of 9,000 bytes pass whole"),
        Step(
            "SSH between them",
            "head",
            [f"ssh-copy-id {boxes.worker}", f"ssh {boxes.worker} hostname"],
            "the worker's name, without a password",
        ),
        Step("The firewall of the head", "head", firewall(boxes, "head"), "sudo ufw status lists them"),
        Step("The firewall of the worker", "worker", firewall(boxes, "worker"), "sudo ufw status lists them"),
        Step(
            "The same release, image and files",
            BOTH,
            [
                "git describe --always",
                "docker compose pull vllm",
                "docker image inspect --format '{{index .RepoDigests 0}}' \"$(docker compose config --images | grep vllm)\"",
            ],
            "the same line on both boxes: ranks of two versions of vLLM do not understand each other",
        ),
        Step(
            "The settings",
            BOTH,
            [f"cp {OVERRIDE} .  # the box's own, beside compose.yaml", f"cat {ENV} >> .env  # remove the older lines of the same keys"],
            "docker compose config --quiet says nothing",
        ),
        Step(
            "Folders that vLLM's user may write",
            "worker" if embed_on_head else BOTH,
            ["docker compose run --rm --no-deps --user 0 --entrypoint chmod vllm 1777 /models /cache"],
            "no error. Where the embed service runs, its image does it",
        ),
        Step(
            "The model on both disks",
            BOTH,
            ["docker compose run --rm --no-deps --entrypoint python3 vllm /qmd/start.py download"],
            "downloaded: the same folder on both; its last part is the revision",
        ),
    ]
    worker = Step("The worker", "worker", ["docker compose up -d --no-deps vllm"], _worker_waits(boxes))
    made += [
        *([worker] if boxes.way == "nnodes" else []),
        # Not qmdctl up: its memory check counts the whole model on one box.
        Step("The head", "head", ["docker compose up -d"], "docker compose logs -f vllm: Application startup complete"),
        *([worker] if boxes.way == "ray" else []),
        Step(
            "The ranks speak RDMA",
            "head",
            ["docker compose logs vllm | grep -E 'NCCL INFO.*(NET/IB|NET/Socket)' | head"],
            "NET/IB : Using …, on both boxes. NET/Socket is TCP: many times slower; look at /dev/infiniband, --hca, ibv_devinfo",
        ),
        Step(
            "Nothing listens elsewhere",
            BOTH,
            [f"sudo ss -lntp | grep -E ':({API_PORT}|{MASTER_PORT}|{RAY_PORT}) '"],
            f"{boxes.head}:{API_PORT} on the head; what shows 0.0.0.0 or * is what the firewall's rules are for",
        ),
        Step(
            "An answer",
            "head",
            [
                f"curl -s http://{boxes.head}:{API_PORT}/v1/models",
                *(
                    [f"qmdctl bench --embed-url http://127.0.0.1:8001 --generate-url http://{boxes.head}:{API_PORT}"]
                    if embed_on_head
                    else []
                ),
            ],
            "the model's name" + ("; how long an expansion takes, and how much of a search" if embed_on_head else ""),
        ),
    ]
    return made


def _worker_waits(boxes: Boxes) -> str:
    if boxes.way == "ray":
        return "its log: Ray runtime started; the head's `vllm serve` waits for it"
    return f"its log: Launching vLLM … headless …, with head node address {boxes.head}:{MASTER_PORT}; it waits for the head"


def as_text(made: list[Step]) -> str:
    lines = []
    for number, step in enumerate(made, 1):
        lines.append(f"{number}. {step.title} ({step.where})")
        lines += [f"     {command}" for command in step.commands]
        lines += [f"   → {step.see}"] if step.see else []
    return "\n".join(lines) + "\n"
