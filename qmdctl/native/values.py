"""What was found → the values for .env, each with its origin, and what does not fit into one."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from qmdctl import env_file
from qmdctl.errors import ConfigurationError
from qmdctl.native.found import Found
from qmdctl.native.units import Unit
from qmdctl.redaction import command_lines
from qmdctl.terminal import human_bytes

# Variables of the seed's program that the stack knows by the same name.
SAME = ("DEVICE", "MAX_BATCH_SIZE", "USE_FLASH_ATTN", "HF_ENDPOINT", "HTTPS_PROXY", "NO_PROXY")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ALIASES = ("default", "generate")  # of the wire contract; vllm/arguments.py adds them


@dataclass(frozen=True)
class Value:
    key: str
    value: str
    origin: str

    def payload(self) -> dict[str, str]:
        return {"key": self.key, "value": command_lines.value(self.key, self.value), "origin": self.origin}


@dataclass
class Values:
    """`notes`: what has no counterpart, or changes for somebody. `owner`: what only the owner can do."""

    values: dict[str, Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    owner: list[str] = field(default_factory=list)

    def set(self, key: str, value: str, origin: str) -> None:
        """Values that .env cannot hold become a note."""
        try:
            env_file.quote(value)
        except ConfigurationError:
            self.notes.append(f"{key} of {origin} cannot be written to .env: set it by hand")
            return
        self.values.setdefault(key, Value(key, value, origin))

    def plain(self) -> dict[str, str]:
        return {key: value.value for key, value in self.values.items()}


def values_from(
    found: Found,
    *,
    caller: tuple[int, int] = (1000, 1000),
    rootless: bool = False,
    keep_services: bool = False,
    clear_serve: bool = False,
    default_image: str = "",
) -> Values:
    """Values for .env. `caller`: the user and group to whom a cache of root's is to be given.

    `rootless`: the containers' user is 0 whoever owns the cache.
    """
    out = Values()
    _embed(found, out)
    _generation(found, out, default_image)
    _cache(found, out, rootless, caller)
    # The seed's server embeds texts as they come, with the prefixes that its client writes.
    out.set("PROMPT_POLICY", "raw", "what the seed's server does; an index made with it stays valid")
    if found.advertised and not keep_services:
        _sidecars(found, out)
    _openings(found, out, clear_serve)
    return out


def _embed(found: Found, out: Values) -> None:
    unit, container = found.unit("qmd-embed"), found.container("qmd-embed")
    for key in ("EMBED_MODEL", "RERANK_MODEL"):
        model, origin = found.model(key)
        if model.startswith((".", "/", "~")):
            out.notes.append(f"{key}={model} is a folder: the containers see only folders in the Hugging Face cache, as /models/…")
        elif model:
            out.set(key, model, origin)
    environments = [
        ("unit qmd-embed", unit.environment if unit else {}),
        ("container qmd-embed", container.environment if container else {}),
    ]
    for origin, environment in environments:
        for key in SAME:
            if environment.get(key):
                out.set(key, environment[key], origin)
        if (gpu := environment.get("CUDA_VISIBLE_DEVICES", "")) and "," not in gpu:
            out.set("EMBED_GPU", gpu, f"{origin} (CUDA_VISIBLE_DEVICES)")
        if any(environment.get(key) for key in TOKENS):
            out.owner.append(
                f"{origin} has a Hugging Face token in its environment: put it into secrets/hf_token (qmdctl init --hf-token-file)"
            )
    if unit:
        for file in unit.unreadable:
            out.notes.append(f"{file}, which unit {unit.name} reads, may not be read by this user: sudo shows what it sets")
    if unit or container:
        port, origin = found.port_from("embed")
        out.set("EMBED_PORT", str(port), origin)


def _generation(found: Found, out: Values, default_image: str) -> None:
    container, unit, serving = found.container("qmd-vllm"), found.unit("qmd-vllm"), found.generation
    origin = "container qmd-vllm" if container else "unit qmd-vllm"
    if container is None and unit is None:
        out.notes.append("no qmd-vllm was found: the stack starts one beside embed; COMPOSE_PROFILES= (empty) in .env leaves it out")
        return
    if not serving.found:
        out.notes.append(f"{origin} has no `vllm serve` in its command line: its model is not known, VLLM_MODEL is the preset's")
    elif serving.model.startswith((".", "/", "~")) or not serving.model:
        out.notes.append(f"{origin} serves {serving.model or 'no model by name'}: put the id or the folder under /models into VLLM_MODEL")
    else:
        out.set("VLLM_MODEL", serving.model, origin)
    for key, value in serving.values.items():
        out.set(key, value, origin)
    others = [name for name in serving.names if name not in (serving.model, *ALIASES)]
    if others:
        extra = serving.values.get("VLLM_EXTRA_ARGS", "")
        names = shlex.join(["--served-model-name", *dict.fromkeys((*serving.names, serving.model, *ALIASES))])
        out.values.pop("VLLM_EXTRA_ARGS", None)
        out.set("VLLM_EXTRA_ARGS", f"{extra} {names}".strip(), f"{origin} (clients call the model {', '.join(others)})")
    if serving.left:
        out.notes.append(f"not carried over from {origin}: {', '.join(serving.left)}; VLLM_EXTRA_ARGS takes further options")
    if "--api-key" in serving.left:
        out.owner.append("qmd-vllm demands a key: API_KEYS_FILE is the stack's way (docs/security.md)")
    if "--hf-token" in serving.left:
        out.owner.append(
            f"{origin} has a Hugging Face token in its command line: put it into secrets/hf_token (qmdctl init --hf-token-file)"
        )
    if container:
        if container.image != default_image and not container.image.startswith("sha256:"):
            out.set("VLLM_IMAGE", container.image, f"{origin} (the image is on this machine)")
        if len(container.gpus) == 1:
            out.set("VLLM_GPU", container.gpus[0], f"{origin} (--gpus)")
    port, origin = found.port_from("vllm")
    out.set("VLLM_PORT", str(port), origin)


def _cache(found: Found, out: Values, rootless: bool, caller: tuple[int, int]) -> None:
    usable = [cache for cache in found.caches if cache.readable]
    for cache in found.caches:
        if not cache.readable:
            out.notes.append(f"{cache.folder} ({cache.origin}) may not be read by this user: sudo qmdctl migrate looks into it")
    best = next((cache for cache in usable if cache.bytes), None)
    if best is None:
        container = found.container("qmd-vllm")
        if container and not container.cache():
            out.notes.append("the weights of qmd-vllm lie inside its container, which has no cache mounted: they are downloaded once more")
        return
    out.set("HF_CACHE_DIR", str(best.folder), f"{human_bytes(best.bytes)} of these models are in it ({best.origin})")
    user = f"{best.uid}:{best.gid}"
    if rootless:
        return  # init's values stand: 0, which is the user outside
    if best.uid == 0:
        # The stack does not run as root for its files' sake.
        user = f"{caller[0]}:{caller[1]}"
        out.owner.append(f"{best.folder} is root's; give it to the containers' user: sudo chown -R {user} {shlex.quote(str(best.folder))}")
    elif best.foreign:
        parts = shlex.join(str(part) for part in best.foreign)
        out.owner.append(f"parts of the cache belong to another user (vLLM's container ran as root): sudo chown -R {user} {parts}")
    uid, gid = user.split(":")
    origin = f"owner of {best.folder}" if best.uid else "you; the cache is root's"
    out.set("QMD_UID", uid, origin)
    out.set("QMD_GID", gid, origin)
    for other in usable:
        extra = {model: size for model, size in other.models.items() if model not in best.models}
        if other is not best and extra:
            out.notes.append(
                f"{', '.join(extra)} ({human_bytes(sum(extra.values()))}) is only in {other.folder}: copy it into {best.folder}/hub, or it "
                "is downloaded once more"
            )


def _sidecars(found: Found, out: Values) -> None:
    """A Service's name and a node's share a namespace, so the nodes have the machine's name in theirs."""
    names = ", ".join(found.advertised)
    host = found.serving.host or "box"
    because = f"{names} on this machine's tailscaled"
    out.set("COMPOSE_PROFILES", "generation,tailnet", f"{because}: the sidecars take the names over")
    out.set("TAILNET_SERVICE", "1", f"{because}: the same names, so clients keep their addresses")
    out.set("EMBED_HOSTNAME", f"qmd-embed-{host}", "a node must not be called as a Service is")
    out.set("VLLM_HOSTNAME", f"qmd-vllm-{host}", "a node must not be called as a Service is")
    if found.serving.tags:
        out.set("TS_TAGS", ",".join(found.serving.tags), "this machine's own tags: a Service's host must be tagged")
    out.owner.append(
        "in Tailscale's admin console make an auth key (reusable, with the tags of TS_TAGS), then: qmdctl init --ts-authkey-file FILE; "
        "without one `qmdctl up` shows two login links"
    )
    out.owner.append(
        f"in the admin console approve the new hosts of {names} (https://login.tailscale.com/admin/services), unless autoApprovers does; "
        "keep the Services: the alternative, nodes called qmd-embed and qmd-vllm without TAILNET_SERVICE, needs them deleted first"
    )


def _openings(found: Found, out: Values, clear_serve: bool) -> None:
    """Addresses beyond this machine that the stack does not serve, or that stay open."""
    exposed = {unit.name: host for unit in found.active_units if (host := _host(unit)) not in LOOPBACK}
    for container in found.containers:
        for address, _ in container.ports.values():
            if address not in LOOPBACK:
                exposed[container.name] = address or "0.0.0.0"
    for name, host in exposed.items():
        out.notes.append(f"{name} listens on {host}; the stack's ports are on 127.0.0.1 alone, others come over the tailnet")
    for entry in found.serving.node:
        if entry.funnel:
            out.owner.append(f"{entry.sentence()}: to close it: {shlex.join(['tailscale', 'funnel', *entry.off()[2:]])}")
        elif not clear_serve:
            out.notes.append(f"{entry.sentence()}: stays, and leads to the stack's port; --clear-serve ends it")
    for port, who in found.strangers().items():
        out.owner.append(f"port {port} is held by {who}, which is neither a unit nor a container of the seed's: stop it before qmdctl up")


def _host(unit: Unit) -> str:
    if any("docker" in word for word in unit.command[:1]):
        return LOOPBACK[0]  # the container's ports say it
    return unit.option("--host") or LOOPBACK[0]
