"""What to type on which box, in order, and what to see before the next step."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qmdctl.scale.boxes import API_PORT, MASTER_PORT, PREFIX, RAY_PORT, ROLES, Boxes, Role
from qmdctl.scale.render import ENV, NETPLAN, OVERRIDE, firewall

BOTH = "both"
FOLDER = Path("plan")  # where none was named


@dataclass(frozen=True)
class Step:
    """`where`: head, worker or both. `see` is what has to be there before the next one."""

    title: str
    where: str
    commands: list[str] = field(default_factory=list)
    see: str = ""

    def payload(self) -> dict[str, object]:
        return {"title": self.title, "where": self.where, "commands": self.commands, "see": self.see or None}


def steps(boxes: Boxes, embed_on_head: bool, out: Path | None) -> list[Step]:
    """`out` is the folder with the files of both boxes, seen from the head's project folder; None where they were only shown."""
    folder = (out or FOLDER).expanduser()

    def file(role: Role, name: str) -> str:
        """As it is typed on that box; to the worker's project folder the whole plan is copied."""
        return shlex.quote(str((folder if role == "head" else Path(folder.name)) / role / name))

    shown = Step("The files", "head", [], f"this command again with --out {FOLDER}, which writes them: what follows takes them from there")
    worker = Step("The worker", "worker", ["docker compose up -d --no-deps vllm"], _worker_waits(boxes))
    return [
        *([] if out else [shown]),
        Step("The same release", BOTH, ["git describe --always"], "the same line on both boxes"),
        Step(
            "The plan on the worker",
            "head",
            [
                "worker=NAME  # its name or address on the LAN or the tailnet: the cable has none yet",
                f'scp -r {shlex.quote(str(folder))} "$worker:$PWD/"  # or where its project folder is',
            ],
            f"on the worker `ls {shlex.quote(f'{folder.name}/worker')}` lists {NETPLAN}, {OVERRIDE} and {ENV}",
        ),
        *_each(
            "The cable",
            lambda role: ["ibdev2netdev", f"ip -br link show {boxes.interface_of(role)}"],
            lambda role: f"{boxes.interface_of(role)} (Up); same port on both boxes",
        ),
        *_each(
            "An address on it",
            lambda role: [
                f"sudo install -m 600 {file(role, NETPLAN)} /etc/netplan/{NETPLAN}",
                "sudo netplan apply",
                f"ip -br address show {boxes.interface_of(role)}",
            ],
            lambda role: f"{boxes.address(role)}/{PREFIX}",
        ),
        Step("The way", "head", [f"ping -c 3 -M do -s 8972 {boxes.worker}"], "three answers: packets of 9,000 bytes pass whole"),
        *_each("The firewall", lambda role: firewall(boxes, role), lambda role: "sudo ufw status lists them"),
        *_each("The settings", lambda role: _settings(file(role, OVERRIDE), file(role, ENV)), _settings_seen),
        Step(
            "The same image",
            BOTH,
            [
                "docker compose pull vllm",
                "docker image inspect --format '{{index .RepoDigests 0}}' \"$(docker compose config --images | grep vllm)\"",
            ],
            "the same line on both boxes: ranks of two versions of vLLM do not understand each other",
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
        *([worker] if boxes.way == "nnodes" else []),
        # Not qmdctl up: how it waits for a vLLM of two boxes was never run.
        Step("The head", "head", ["docker compose up -d"], "docker compose logs -f vllm: Application startup complete"),
        *([worker] if boxes.way == "ray" else []),
        Step(
            "The ranks speak RDMA",
            BOTH,
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


def _each(title: str, commands: Callable[[Role], list[str]], see: Callable[[Role], str]) -> list[Step]:
    """A step for each box, or one for both where the same is typed and seen."""
    made = [Step(title, role, commands(role), see(role)) for role in ROLES]
    return made if made[0].payload() != {**made[1].payload(), "where": "head"} else [Step(title, BOTH, made[0].commands, made[0].see)]


def _settings(override: str, env: str) -> list[str]:
    """The box's own override beside compose.yaml, and its lines in .env in the place of older ones: a key given twice is refused."""
    keys = f"$(cut -d= -f1 {env} | paste -sd '|')"
    return [
        f"cp {override} .",
        f"touch .env && sed -E -i -e \"/^(export )?({keys})=/d\" -e '$a\\' .env",
        f"cat {env} >> .env",
    ]


def _settings_seen(role: Role) -> str:
    if role == "head":
        return "docker compose config --quiet says nothing. Files that COMPOSE_FILE had beside compose.yaml are added to it again by hand"
    return (
        "docker compose config --quiet says nothing; what the head's .env has of VLLM_IMAGE, QMD_UID and HF_TOKEN_FILE is in this one too"
    )


def _worker_waits(boxes: Boxes) -> str:
    if boxes.way == "ray":
        return "its log: Ray runtime started; the head's `vllm serve` waits for it"
    return f"its log: Launching vLLM … headless …, with head node address {boxes.head}:{MASTER_PORT}; it waits for the head"


def as_text(made: list[Step]) -> str:
    lines = ["All of it is typed in the project's folder of the box that is named."]
    for number, step in enumerate(made, 1):
        lines.append(f"{number}. {step.title} ({step.where})")
        lines += [f"     {command}" for command in step.commands]
        lines += [f"   → {step.see}"] if step.see else []
    return "\n".join(lines) + "\n"
