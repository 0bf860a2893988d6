"""The files of each box: a compose override beside compose.yaml, lines for .env, the netplan of the cable."""

from __future__ import annotations

import shlex

from qmdctl.scale.boxes import API_PORT, MASTER_PORT, PREFIX, RAY_PORT, Boxes, Role
from qmdctl.scale.memory import OBJECT_STORE_BYTES, Share

OVERRIDE = "compose.scale.yaml"
ENV = "env.scale"
NETPLAN = "40-qmd-cable.yaml"


def vllm_options(boxes: Boxes, role: Role) -> list[str]:
    """What `vllm serve` gets beside what vllm/start.py gives it (VLLM_EXTRA_ARGS)."""
    options = ["--host", boxes.head, "--tensor-parallel-size", "2"]
    if boxes.way == "ray":
        return [*options, "--distributed-executor-backend", "ray"]
    ranks = ["--nnodes", "2", "--node-rank", "0" if role == "head" else "1", "--master-addr", boxes.head, "--master-port", str(MASTER_PORT)]
    return [*options, "--distributed-executor-backend", "mp", *ranks, *(["--headless"] if role == "worker" else [])]


def environment(boxes: Boxes, role: Role) -> dict[str, str]:
    """Which way the ranks speak to each other; all of it on the cable."""
    interface = boxes.interface_of(role)
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "UCX_NET_DEVICES", "OMPI_MCA_btl_tcp_if_include")
    values = {"VLLM_HOST_IP": boxes.address(role), "MASTER_ADDR": boxes.head, **dict.fromkeys(names, interface)}
    values |= {"NCCL_IB_HCA": boxes.hca} if boxes.hca else {}
    values["NCCL_DEBUG"] = "INFO"  # its log says NET/IB or NET/Socket
    if boxes.way == "ray":
        # On unified memory its monitor takes the GPU's share for a leak and kills the engine.
        values |= {"RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    return values


def ray_start(boxes: Boxes, role: Role) -> list[str]:
    common = [f"--node-ip-address={boxes.address(role)}", f"--object-store-memory={OBJECT_STORE_BYTES}", "--num-gpus=1"]
    if role == "head":
        return ["ray", "start", "--head", f"--port={RAY_PORT}", "--include-dashboard=false", *common]
    return ["ray", "start", f"--address={boxes.head}:{RAY_PORT}", "--block", *common]


def override(boxes: Boxes, role: Role, embed: bool) -> str:
    """compose.scale.yaml of one box, to stand beside compose.yaml. `embed`: whether the embed service runs on it."""
    lines = [
        f"# vLLM on two boxes, the {role}: {boxes.address(role)}. Made by `qmdctl scale`; the other box is {boxes.address(_other(role))}.",
        "services:",
        "  vllm:",
        "    # NCCL's RDMA needs the host's network: RoCE addresses belong to the host's interfaces.",
        "    network_mode: host",
        "    networks: !reset null",
        "    ports: !reset null # a process on the host's network has no published ports",
        *([] if embed else ["    depends_on: !reset null"]),
        "    devices: [/dev/infiniband:/dev/infiniband]",
        *(["    entrypoint: [bash, -c, " + _quoted(ray_command(boxes, role)) + "]"] if boxes.way == "ray" else []),
        "    environment:",
        *(f"      {name}: {_quoted(value)}" for name, value in environment(boxes, role).items()),
        f"      QMD_HEALTH_URL: http://{boxes.head}:{API_PORT}/health # also the worker's: it is ready when the head serves",
        *(["      QMD_EMBED_HEALTH_URL: http://127.0.0.1:${EMBED_PORT:-8001}/health"] if embed else []),
    ]
    for service, here in (("embed", embed), ("ts-embed", embed), ("ts-vllm", role == "head")):
        lines.append(f"  {service}:")
        if here:  # where the services that are containers among themselves find vLLM under its name
            lines.append(f'    extra_hosts: ["vllm:{boxes.head}"]')
        else:
            lines.append("    profiles: !override [elsewhere]")
        if service != "embed" and not embed:
            lines.append("    depends_on: !reset null")
    return "\n".join(lines) + "\n"


def ray_command(boxes: Boxes, role: Role) -> str:
    """The head's start.py ends as `vllm serve`, which finds the cluster in its container; on the worker Ray starts the rank."""
    start = shlex.join(ray_start(boxes, role))
    return f"{start} && exec python3 /qmd/start.py" if role == "head" else f"python3 /qmd/start.py download && exec {start}"


def env_lines(boxes: Boxes, share: Share, model: str, revision: str, max_model_len: int, max_num_seqs: int, embed: bool) -> dict[str, str]:
    """For .env of one box. The figures for vLLM are the same on both: ranks that disagree do not start."""
    values = {
        "COMPOSE_FILE": f"compose.yaml:{OVERRIDE}",
        "COMPOSE_PROFILES": "generation" if share.role == "worker" else "",  # the head keeps its own
        "VLLM_MODEL": model,
        "VLLM_REVISION": revision,
        "VLLM_GPU_MEMORY_UTILIZATION": f"{share.utilization:.2f}",
        "VLLM_KV_CACHE_GB": f"{share.kv_cache_gb:g}",
        "VLLM_MAX_MODEL_LEN": str(max_model_len),
        "VLLM_MAX_NUM_SEQS": str(max_num_seqs),
        "VLLM_EXTRA_ARGS": shlex.join(vllm_options(boxes, share.role)),
        "WAIT_FOR_EMBED_SECONDS": "30" if embed else "0",
    }
    return {name: value for name, value in values.items() if value}


def env_file(values: dict[str, str]) -> str:
    return "".join(f"{name}={_env_quoted(value)}\n" for name, value in values.items())


def netplan(boxes: Boxes, role: Role) -> str:
    """The address on the cable. NVIDIA's own steps for two Sparks give the cable's two halves a network each; this is the first of them."""
    return (
        f"network:\n  version: 2\n  ethernets:\n    {boxes.interface_of(role)}:\n"
        f"      addresses: [{boxes.address(role)}/{PREFIX}]\n      dhcp4: false\n      mtu: 9000\n"
    )


def firewall(boxes: Boxes, role: Role) -> list[str]:
    """What ranks and Ray listen on has no key: the cable alone may reach it."""
    peer, own = boxes.address(_other(role)), boxes.address(role)
    rules = [f"sudo ufw allow in on {boxes.interface_of(role)} from {peer} to {own}"]
    if role == "head":
        rules.append(f"sudo ufw allow from 172.16.0.0/12 to {own} port {API_PORT} proto tcp")
    return [*rules, "sudo ufw allow OpenSSH", "sudo ufw default deny incoming", "sudo ufw enable"]


def files(boxes: Boxes, role: Role, values: dict[str, str], embed: bool) -> dict[str, str]:
    """Name → content, of one box."""
    return {OVERRIDE: override(boxes, role, embed), ENV: env_file(values), NETPLAN: netplan(boxes, role)}


def _other(role: Role) -> Role:
    return "worker" if role == "head" else "head"


def _quoted(value: str) -> str:
    """A YAML scalar in double quotes, which Compose leaves as it is."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{escaped}"'


def _env_quoted(value: str) -> str:
    return f'"{value}"' if any(character in value for character in " #'") else value
