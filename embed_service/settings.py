"""Every setting of the embed service, read from the environment and validated at start.

`docs/configuration.md` is generated from the descriptions below (`embed-service config --markdown`).
"""

from __future__ import annotations

import difflib
import os
import re
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from embed_service.errors import SettingsError

SOCKET_PATH_BYTES = 103  # macOS; Linux has 107
HOST_PATTERN = re.compile(r"\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
Names = Annotated[tuple[str, ...], NoDecode]  # comma-separated in the environment


class Settings(BaseSettings):
    """Defaults < environment. Construct with `load_settings()`, which turns errors into sentences."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", case_sensitive=False, env_ignore_empty=True)

    # Models
    embed_model: str = Field("Qwen/Qwen3-Embedding-4B", description="Embedding model: a Hugging Face id or a folder.")
    rerank_model: str = Field(
        "Qwen/Qwen3-Reranker-4B",
        description="Reranker: a Hugging Face id or a folder. The same value as EMBED_MODEL reranks by cosine.",
    )
    embed_revision: str | None = Field(
        None, description="Branch, tag or commit of EMBED_MODEL. Unset: `main` at the first start, then that."
    )
    rerank_revision: str | None = Field(
        None, description="Branch, tag or commit of RERANK_MODEL. Unset: `main` at the first start, then that."
    )
    embed_model_aliases: Names = Field(
        ("default", "embed", "qmd-embed"), description="Further names of the embedding model in /v1/models, comma-separated."
    )
    rerank_model_aliases: Names = Field(
        ("rerank", "qmd-rerank"), description="Further names of the reranker in /v1/models, comma-separated."
    )
    prompt_policy: Literal["native", "raw"] = Field(
        "native",
        description="`native` rewrites the Gemma-style prefixes that QMD clients send to the served model's own form; `raw` leaves them.",
    )
    hf_token_file: str | None = Field(None, description="File with a Hugging Face token, for gated models.")

    # Device
    device: Literal["cuda", "auto", "cpu", "mps"] = Field(
        "cuda", description="Where to compute; `auto` takes cuda, then mps, then cpu. Of several GPUs CUDA_VISIBLE_DEVICES chooses one."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="`auto`: bfloat16 on CUDA and on a CPU where a measurement at start finds it faster; else float32."
    )
    use_flash_attn: bool = Field(True, description="Flash attention where it is to be had; otherwise scaled-dot-product attention.")
    embed_memory_gb: float | None = Field(None, gt=0, description="Cap on the device memory of the engine, in GB. Unset: no cap.")
    cpu_threads: int = Field(0, ge=0, description="Threads for computing on a CPU; 0: one per physical core.")
    tokenizer_threads: int = Field(2, ge=1, description="Threads that tokenise.")

    # Batching
    max_batch_size: int = Field(
        64, ge=1, description="Most sequences in a micro-batch; lower takes less memory. Never a limit on a request."
    )
    max_batch_tokens: int = Field(16_384, ge=256, description="Most tokens in a micro-batch; lowered by itself when memory runs out.")
    target_batch_ms: int = Field(
        100,
        ge=10,
        description="Time that a micro-batch should take, in ms; a search waits for the rest of one. "
        "Up to 2.5 times that where it would hold fewer than 1,024 tokens, and longer for a single long text.",
    )
    bulk_aging_seconds: float = Field(2.0, gt=0, description="Bulk work that searches have passed for this long goes before them once.")
    interactive_max_texts: int = Field(8, ge=0, description="Embedding requests of at most so many texts are interactive.")
    interactive_max_tokens: int = Field(2_048, ge=0, description="Embedding requests of at most so many tokens are interactive.")

    result_cache_mb: float = Field(
        64, ge=0, allow_inf_nan=False, description="Memory for query vectors and rerank scores that may be asked again, in MB; 0: none."
    )

    # Limits
    max_input_tokens: int = Field(8_192, ge=8, description="Longest sequence; the model's own limit applies where it is lower.")
    max_body_mib: int = Field(32, ge=1, description="Largest request body, in MiB (413 above).")
    max_queued_tokens: int = Field(64_000_000, ge=1, description="Most tokens waiting; above it requests get 503 with Retry-After.")
    request_deadline_seconds: float = Field(110, gt=0, description="A request unanswered after this gets 503; clients give up at 120.")
    load_wait_seconds: float = Field(25, ge=0, description="How long a request waits for models that load or an engine that restarts.")
    drain_seconds: float = Field(20, ge=0, description="How long SIGTERM waits for requests in flight.")

    # Engines
    engines: Literal["child", "ray"] = Field(
        "child", description="`child`: one engine, a process beside the service; `ray`: engines on several boxes (docs/scale.md)."
    )
    ray_engines: int = Field(1, ge=1, description="Engines that are kept alive over all boxes.")
    ray_gpus_per_engine: float = Field(
        1,
        ge=0,
        description="GPUs that an engine takes of its box; 0.5: two engines share one (set EMBED_MEMORY_GB); 0: it computes on a CPU.",
    )
    ray_cpus_per_engine: float = Field(1, ge=0, description="CPUs that an engine counts for on its box.")
    ray_address: str | None = Field(
        None,
        description="Head of the Ray cluster, as address:port. Unset: the service is the head itself. "
        "Elsewhere a node of that cluster must run on this machine.",
    )
    ray_node_ip: str | None = Field(None, description="Address of this box on the private network of the boxes.")
    ray_node_cpus: int | None = Field(None, ge=0, description="CPUs that this box gives to engines. Unset: all that Ray finds.")
    ray_node_gpus: int | None = Field(None, ge=0, description="GPUs that this box gives to engines. Unset: all that Ray finds.")
    ray_auth_token_path: str | None = Field(None, description="File with the token that all boxes of the cluster have in common.")
    ray_object_store_mb: int = Field(200, ge=80, description="Shared memory of a box's Ray node for messages, in MB.")

    # Health
    health_canary_seconds: float = Field(30, gt=0, description="/health is green only while a canary passed within this time.")
    engine_hang_seconds: float = Field(
        20, gt=0, description="An engine without a heartbeat for this long (two minutes while it loads) is killed and started again."
    )

    # Control
    idle_unload_minutes: float = Field(
        0,
        ge=0,
        allow_inf_nan=False,
        description="After so many minutes without a request for vectors or scores the models leave the device; the next one loads them "
        "and waits. 0: they stay.",
    )
    control_socket: str | None = Field(
        None, description="Unix socket for `embed-service control` (pause, resume, switch); the image sets it. Unset: none."
    )

    # HTTP
    host: str = Field("127.0.0.1", description="Address to listen on (the container listens on 0.0.0.0).")
    port: int = Field(8001, ge=0, le=65535, description="Port to listen on.")
    api_keys_file: str | None = Field(
        None, description="File with one key per line, plain or `sha256:<hex>`; read again when it changes. Unset: any bearer is accepted."
    )
    require_capability: str | None = Field(None, description="Tailscale app capability that a caller must have (403 without).")
    trusted_sidecars: Names = Field(
        (), description="Addresses, networks or host names whose Tailscale-* headers are believed, comma-separated."
    )
    metrics_clients: Names = Field(
        (), description="Addresses, networks or host names that read /metrics without a key or a capability, comma-separated."
    )
    allowed_hosts: Names = Field(
        (),
        description="Further host names under which browsers are answered, comma-separated: names, `*.example.com`, or `*` for all. "
        "Known without it: addresses, names without a dot, `*.ts.net`, `*.local`, `*.internal`, `*.home.arpa`, this machine's name.",
    )
    generation_url: str | None = Field(None, description="OpenAI-compatible server to forward /v1/completions and /v1/chat/completions to.")
    generation_model: str | None = Field(None, description="Model name for GENERATION_URL; unset: the first that its /v1/models lists.")
    generation_api_key_file: str | None = Field(None, description="File with the bearer key for GENERATION_URL.")
    gzip_min_bytes: int = Field(16_384, ge=0, description="Answers from this size on are compressed for clients that ask for gzip.")

    # Logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged. Texts are never logged."
    )
    log_format: Literal["json", "console"] = Field("json", description="`json`: one object per line; `console`: for people.")

    @field_validator("embed_model_aliases", "rerank_model_aliases", "trusted_sidecars", "metrics_clients", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("embed_model", "rerank_model")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be blank")
        return value.strip()

    @field_validator("control_socket")
    @classmethod
    def _socket(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError("must be an absolute path")
        if value is not None and len(os.fsencode(value)) > SOCKET_PATH_BYTES:
            raise ValueError(f"must have at most {SOCKET_PATH_BYTES} bytes, which is all that a Unix socket's address holds")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not HOST_PATTERN.fullmatch(name):
                raise ValueError(f"{name!r} is no host name: write names without scheme, port and path, *.example.com, or * for all")
        return value

    @field_validator("generation_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/").removesuffix("/v1") if value else value


def load_settings() -> Settings:
    """The settings in force. Raises SettingsError, which names the variable and the fix."""
    names = {name.upper() for name in Settings.model_fields}
    for key in os.environ:
        if key.upper() in names or key.upper() in OTHERS:
            continue
        near = difflib.get_close_matches(key.upper(), names, n=1, cutoff=0.87)
        if near:
            raise SettingsError(f"{key} is not a setting of this service. Did you mean {near[0]}? Rename or remove it.")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper() if first["loc"] else "A setting"
        raise SettingsError(f"{name}: {first['msg']} (got {first.get('input')!r}). See docs/configuration.md.") from None


OTHERS = frozenset({"HF_TOKEN", "HF_HOME"})
