"""From specs to models in memory. Weights come from safetensors alone, code from transformers alone, nothing from a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.configuration_utils import PreTrainedConfig

from embed_service.engine import attention
from embed_service.engine.device import Device
from embed_service.engine.executor import ByRole, Executor
from embed_service.engine.heads import Body, Classifier, EmbeddingModel, LastPositionScorer, PackedModel
from embed_service.engine.linears import prepack
from embed_service.engine.memory import is_out_of_memory
from embed_service.engine.pack import Layout
from embed_service.engine.packed import PackedExecutor
from embed_service.engine.padded import PaddedExecutor
from embed_service.engine.sub_batches import Limits
from embed_service.errors import ModelError
from embed_service.models.architectures import ARCHITECTURES, Architecture
from embed_service.models.spec import ModelSpec, Role
from embed_service.settings import Settings

if TYPE_CHECKING:
    from embed_service.engine.fallback import SentenceTransformerModel

# The names that nomic's repositories had before transformers carried the architecture (their configuration_hf_nomic_bert.py).
OLD_NOMIC_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}
# Values of an old nomic config that transformers' architecture does not compute.
OLD_NOMIC_FIXED: dict[str, tuple[object, ...]] = {
    "activation_function": ("swiglu",),
    "prenorm": (False,),
    "parallel_block": (False,),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "use_rms_norm": (False,),
    "rotary_emb_fraction": (1.0,),
    "rotary_emb_interleaved": (False,),
    "rotary_scaling_factor": (None,),
    "num_experts": (0, None),
    "moe_every_n_layers": (0, -1, None),
}


# Sizes of a head that flash attention takes; scaled-dot-product attention pads others.
VARLEN_STEP, VARLEN_LARGEST = 8, 256
# A CPU is fastest on packs whose activations stay in its caches. A GPU wants the whole micro-batch at once.
CPU_PACK_TOKENS = 2_048
PADDING = 0.25  # most of a rectangle on a GPU; on a CPU CPU_PADDING
CPU_PADDING = 0.1


def load_executor(specs: Mapping[Role, ModelSpec], device: Device, settings: Settings) -> Executor:
    """Load every model that is not `cosine`. Raises ModelError (bad_files, unsupported, no_memory)."""
    served = {role: spec for role, spec in specs.items() if spec.kind != "cosine"}
    packed = {role: load_model(spec, device) for role, spec in served.items() if spec.recognised}
    most = min(CPU_PACK_TOKENS, settings.max_batch_tokens) if device.type == "cpu" else settings.max_batch_tokens
    executor = PackedExecutor(packed, device.type, settings.max_batch_size, most)
    if len(packed) == len(served):
        return executor
    padded = {role: load_fallback(spec, device) for role, spec in served.items() if not spec.recognised}
    limits = Limits(settings.max_batch_size, most, CPU_PADDING if device.type == "cpu" else PADDING)
    fallback = PaddedExecutor(padded, device.type, limits)
    return ByRole({role: executor if spec.recognised else fallback for role, spec in served.items()}, fallback.name)


def load_fallback(spec: ModelSpec, device: Device) -> SentenceTransformerModel:
    """A model of unknown architecture, by sentence-transformers."""
    from embed_service.engine.fallback import load_sentence_transformer

    with _errors_explained(spec, device):
        return load_sentence_transformer(spec, device)


def load_model(spec: ModelSpec, device: Device) -> PackedModel:
    """One model of a known architecture, in evaluation mode on the device."""
    with _errors_explained(spec, device):
        return _load(spec, device)


@contextmanager
def _errors_explained(spec: ModelSpec, device: Device) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        name = f"{spec.role.upper()}_MODEL={spec.id}"
        if is_out_of_memory(error):
            raise ModelError(
                "no_memory",
                f"{name} does not fit in the memory of {device.type}: choose a smaller model, free memory, or raise EMBED_MEMORY_GB.",
                retryable=True,
            ) from error
        if isinstance(error, torch.AcceleratorError):
            raise  # the device is to blame, not the model
        first = str(error).strip().partition("\n")[0]
        raise ModelError("bad_files", f"{name} cannot be loaded ({first}). Choose another model or revision.") from error


def _load(spec: ModelSpec, device: Device) -> PackedModel:
    row = ARCHITECTURES[spec.architecture]
    config = load_config(spec)
    _refuse_sliding_windows(spec, config)
    attention.register()
    layout = _layout(spec, row, config, device)
    if spec.kind == "embedding":
        options = {"add_pooling_layer": False} if row.pooler else {}
        return EmbeddingModel(spec, _body(_from_pretrained(AutoModel, spec, config, device, **options), layout))
    if spec.kind == "yes_no":
        whole = _from_pretrained(AutoModelForCausalLM, spec, config, device)
        head = whole.get_output_embeddings().weight.detach()
        difference = head[spec.yes_id].float() - head[spec.no_id].float()
        return LastPositionScorer(spec, _body(whole.base_model, layout), difference)
    whole = _from_pretrained(AutoModelForSequenceClassification, spec, config, device)
    if row.causal:
        return LastPositionScorer(spec, _body(whole.base_model, layout), whole.score.weight.detach()[0].float())
    pooler, whole.base_model.pooler = getattr(whole.base_model, "pooler", None), None  # it would see the first token of the pack alone
    return Classifier(spec, _body(whole.base_model, layout), pooler, whole.classifier)


def _body(module: torch.nn.Module, layout: Layout) -> Body:
    if layout.device.type == "cpu":
        prepack(module)
    return Body(module, layout)


def _layout(spec: ModelSpec, row: Architecture, config: PreTrainedConfig, device: Device) -> Layout:
    pad_id = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    varlen = device.attention == "varlen" and size % VARLEN_STEP == 0 and size <= VARLEN_LARGEST
    place = torch.device(device.type)
    # RoBERTa's positions begin behind its padding id (create_position_ids_from_input_ids in transformers' modeling_roberta.py).
    skipped = pad_id if row.reserved_positions else None
    return Layout(
        device=place,
        causal=row.causal,
        varlen=varlen,
        shares_prefixes=row.causal and attention.shares_prefixes(place, varlen),
        segments=spec.segments,
        pad_id=pad_id,
        position_start=0 if skipped is None else skipped + 1,
        skipped_id=skipped,
    )


def _refuse_sliding_windows(spec: ModelSpec, config: PreTrainedConfig) -> None:
    """A window shorter than the sequences would need a mask that the packed attention does not have."""
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) and isinstance(window, int) and window < spec.max_tokens:
        raise ModelError(
            "unsupported",
            f"{spec.role.upper()}_MODEL={spec.id} attends within a sliding window of {window} tokens, which is not computed here. "
            f"Set MAX_INPUT_TOKENS={window}, or choose another model.",
        )


def load_config(spec: ModelSpec) -> PreTrainedConfig:
    """transformers' configuration. An old nomic config is read by its old names, which transformers itself would ignore."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(spec.path, trust_remote_code=False, local_files_only=True)
    if spec.architecture != "nomic_bert" or not hasattr(config, "n_embd"):
        return config
    for name, allowed in OLD_NOMIC_FIXED.items():
        if hasattr(config, name) and getattr(config, name) not in allowed:
            raise ModelError(
                "unsupported",
                f"{spec.role.upper()}_MODEL={spec.id} has {name}={getattr(config, name)!r}, which transformers' nomic_bert does not "
                "compute. Choose nomic-ai/nomic-embed-text-v1.5.",
            )
    fields: dict[str, Any] = {new: getattr(config, old) for old, new in OLD_NOMIC_NAMES.items() if getattr(config, old, None) is not None}
    fields |= {name: getattr(config, name) for name in ("vocab_size", "type_vocab_size")}
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": float(getattr(config, "rotary_emb_base", None) or 1000.0)}
    return type(config)(**fields)


def _from_pretrained(auto: Any, spec: ModelSpec, config: PreTrainedConfig, device: Device, **options: object) -> Any:
    """The model with every weight read from its files; a missing or misshapen one is an error, never a random value."""
    model, info = auto.from_pretrained(
        spec.path,
        config=config,
        dtype=device.dtype,
        attn_implementation=attention.NAME,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    missing = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if missing:
        raise ValueError(f"its safetensors lack {len(missing)} weights of a {type(model).__name__}, for example {missing[0]}")
    return model.to(torch.device(device.type)).eval()
