"""`qmdctl scale`: the plan for one model on two boxes, rendered for their addresses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmdctl.commands.common import Invocation
    from qmdctl.models.plan import Plan
    from qmdctl.scale.boxes import Role
    from qmdctl.scale.memory import Config, Share

NOT_RUN = (
    "This plan was never run on two boxes by this project: its files are held to Docker Compose, and its options to vLLM 0.12 and 0.32, "
    "no more. docs/scale.md says what that leaves open."
)


def scale(
    context: typer.Context,
    head: Annotated[str, typer.Option(metavar="IP", help="The head's address on the cable between the boxes.")],
    worker: Annotated[str, typer.Option(metavar="IP", help="The worker's.")],
    interface: Annotated[str, typer.Option(metavar="NAME", help="The interface of that cable, such as enp1s0f1np1.")],
    model: Annotated[str, typer.Option(metavar="ID", help="The model that is split.")],
    revision: Annotated[str, typer.Option(metavar="COMMIT", help="Its revision; both boxes must have the same.")] = "",
    way: Annotated[
        str, typer.Option(metavar="nnodes|ray", help="vLLM's own processes, or a Ray cluster of two (the image must have Ray).")
    ] = "nnodes",
    worker_interface: Annotated[str, typer.Option(metavar="NAME", help="Where the worker's has another name.")] = "",
    hca: Annotated[str, typer.Option(metavar="NAMES", help="RoCE devices for NCCL, such as rocep1s0f1; else NCCL finds them.")] = "",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model's config.json, where this machine has it nowhere else.")
    ] = None,
    weights_gb: Annotated[
        float | None, typer.Option(metavar="GB", min=0.1, max=10_000, help="Size of its weights, where it cannot be told.")
    ] = None,
    kv_bytes_per_token: Annotated[
        int | None, typer.Option(metavar="BYTES", min=1, help="KV cache of a token, all layers; where there is no config.json.")
    ] = None,
    max_model_len: Annotated[int, typer.Option(metavar="TOKENS", min=1, help="VLLM_MAX_MODEL_LEN.")] = 4096,
    max_num_seqs: Annotated[int, typer.Option(metavar="N", min=1, help="VLLM_MAX_NUM_SEQS.")] = 16,
    kv_cache_gb: Annotated[
        float | None, typer.Option(metavar="GB", min=0.1, help="On each box; else for all sequences at full length.")
    ] = None,
    memory_gib: Annotated[float, typer.Option(metavar="GIB", min=1, help="Of each box, as the device shows it.")] = 119.7,
    embed_on: Annotated[str, typer.Option(metavar="head|none", help="Where the embed service runs; none: on a box of its own.")] = "head",
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the files there; else they are shown.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Render one model on two boxes: vLLM's own tensor parallelism.

    Memory of each box, compose override, lines for .env and netplan of both, and the steps in order with what to see after each. Changes
    nothing, needs no Docker. Exit status 2 where the model does not fit or the addresses cannot be.
    """
    from qmdctl.errors import ConfigurationError
    from qmdctl.models.plan import GIB
    from qmdctl.scale.boxes import ROLES, make_boxes
    from qmdctl.scale.memory import one_box, read_model, share_out
    from qmdctl.scale.render import env_lines, files
    from qmdctl.scale.steps import as_text, steps

    call = invocation(context)
    terminal = call.output(json_output)
    boxes = make_boxes(head, worker, interface, way, worker_interface, hca)
    if embed_on not in ("head", "none"):
        raise ConfigurationError(f"--embed-on: {embed_on!r} is not known", "--embed-on head, or --embed-on none")
    if not model.strip() or any(character.isspace() or character in "\"'$" for character in model):
        raise ConfigurationError(f"--model: {model!r} is no id of a model", "--model OWNER/NAME")
    if revision and not revision.replace(".", "").replace("-", "").replace("_", "").isalnum():
        raise ConfigurationError(f"--revision: {revision!r} is no revision", "--revision COMMIT, as the hub shows it")
    if out is not None and not out.name.strip("."):
        raise ConfigurationError(f"--out: {str(out)!r} is no folder of its own, and it is copied to the worker as a whole", "--out plan")
    with_embed: Role | None = "head" if embed_on == "head" else None
    plan, known = plan_of(call, model, max_model_len, max_num_seqs, kv_cache_gb)
    read = read_model(model, config_of(model, config, known), plan, weights_gb, kv_bytes_per_token)
    shares = share_out(read, plan, int(memory_gib * GIB), boxes.way, with_embed, lambda name: require(known, name))
    rendered = {}
    for share in shares:
        here = with_embed == share.role
        rendered[share.role] = files(boxes, share.role, env_lines(boxes, share, model, revision, max_model_len, max_num_seqs, here), here)
    order = steps(boxes, with_embed is not None, out)
    notes = [NOT_RUN]
    if one_box(read, plan, int(memory_gib * GIB)):
        notes.insert(0, f"{model} fits on one box of this size. On one it answers sooner: each layer waits for the cable twice.")
    written = write(
        out, {**{f"{role}/{name}": text for role in ROLES for name, text in rendered[role].items()}, "STEPS.txt": as_text(order)}
    )
    data = {
        "boxes": {share.role: box_payload(share, rendered[share.role]) for share in shares},
        "steps": [step.payload() for step in order],
        "written": written,
        "notes": notes,
    }
    parts = [f"Memory. {share.place.sentence()}\n  vllm: {share.place.parts[0].detail}" for share in shares]
    if not written:
        parts += [f"# {role}/{name}\n{text}" for role in ROLES for name, text in rendered[role].items()]
    parts += [as_text(order), *(f"! {note}" for note in notes)]
    parts += [f"Written: {', '.join(written)}"] if written else []
    terminal.result("\n\n".join(part.rstrip("\n") for part in parts), data)


def plan_of(call: Invocation, model: str, max_model_len: int, max_num_seqs: int, kv_cache_gb: float | None) -> tuple[Plan, Path | None]:
    """(the plan with the embed service's models of a project that is here, else the defaults; the Hugging Face cache of that project)."""
    from dataclasses import replace

    from qmdctl.errors import ConfigurationError
    from qmdctl.laptop.project import found_project
    from qmdctl.models.budget import plan_from

    settings: Mapping[str, str] = found_project(call).settings or {}
    keys = ("EMBED_MODEL", "RERANK_MODEL", "EMBED_MEMORY_GB", "MAX_BATCH_TOKENS", "DTYPE", "VLLM_DTYPE")
    try:
        plan = plan_from({key: settings.get(key, "") for key in keys}, cpu=False)
    except ValueError as error:
        raise ConfigurationError(str(error), "correct it in .env") from None
    cache = settings.get("HF_CACHE_DIR", "")
    hub = Path(cache).expanduser() / "hub" if "/" in cache else None
    return replace(plan, generate_model=model, max_model_len=max_model_len, max_num_seqs=max_num_seqs, kv_cache_gb=kv_cache_gb), hub


def config_of(model: str, file: Path | None, cache: Path | None) -> Config | None:
    """Of the file that is given, else where this machine has it; None where it is nowhere. ConfigurationError for a file that is none."""
    import json

    from qmdctl.errors import ConfigurationError

    if file is None:
        try:
            return require(cache, model)
        except ConfigurationError:
            return None
    try:
        value = json.loads(file.expanduser().read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--config: {file} cannot be read: {error}", "--config config.json, of the model's repository") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"--config: {file} holds no JSON object", "--config config.json, of the model's repository")
    return value


def require(cache: Path | None, model: str) -> Config:
    from qmdctl.models.known import model_config

    return model_config(model, cache)


def box_payload(share: Share, rendered: dict[str, str]) -> dict[str, Any]:
    place = share.place
    return {
        "memory": place.sentence(),
        "planned_bytes": place.planned_bytes,
        "total_bytes": place.total_bytes,
        "parts": [{"service": part.service, "bytes": part.bytes, "detail": part.detail} for part in place.parts],
        "gpu_memory_utilization": share.utilization,
        "kv_cache_gb": share.kv_cache_gb,
        "files": rendered,
    }


def write(folder: Path | None, contents: dict[str, str]) -> list[str]:
    """The files that were written. ConfigurationError where that is not possible; other files there are left alone."""
    from qmdctl.errors import ConfigurationError

    if folder is None:
        return []
    written = []
    try:
        for name, text in contents.items():
            path = folder.expanduser() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(str(path))
    except OSError as error:
        raise ConfigurationError(
            f"--out: {folder} cannot be written: {error.strerror or error}", "--out with a folder of your own"
        ) from None
    return written
