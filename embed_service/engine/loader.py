"""From specs to models in memory. Weights come from safetensors alone, code from transformers alone, nothing from a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.configuration_utils import PreTrainedConfig

from embed_service.engine.device import Device
from embed_service.engine.memory import is_out_of_memory
from embed_service.engine.padded import Classifier, EmbeddingModel, Encoder, LastPositionScorer, PaddedExecutor, PaddedModel
from embed_service.engine.sub_batches import Limits
from embed_service.errors import ModelError
from embed_service.models.architectures import ARCHITECTURES
from embed_service.models.spec import ModelSpec, Role
from embed_service.settings import Settings

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


def load_executor(specs: Mapping[Role, ModelSpec], device: Device, settings: Settings) -> PaddedExecutor:
    """Load every model that is not `cosine`. Raises ModelError (bad_files, unsupported, no_memory)."""
    models: dict[Role, PaddedModel] = {}
    for role, spec in specs.items():
        if spec.kind != "cosine":
            models[role] = load_model(spec, device)
    name = "padded" if all(spec.recognised for spec in specs.values()) else "sentence-transformers"
    return PaddedExecutor(models, device.type, limits_of(device, settings), name)


def limits_of(device: Device, settings: Settings) -> Limits:
    """A GPU wants whole micro-batches; a CPU is fastest on small ones, because their activations stay in its caches."""
    if device.type == "cpu":
        return Limits(rows=settings.max_batch_size, tokens=min(2_048, settings.max_batch_tokens), padding=0.1)
    return Limits(rows=settings.max_batch_size, tokens=settings.max_batch_tokens, padding=0.25)


def load_model(spec: ModelSpec, device: Device) -> PaddedModel:
    """One model, in evaluation mode on the device."""
    try:
        if not spec.recognised:
            from embed_service.engine.fallback import load_sentence_transformer

            return load_sentence_transformer(spec, device)
        return _load(spec, device)
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


def _load(spec: ModelSpec, device: Device) -> PaddedModel:
    row = ARCHITECTURES[spec.architecture]
    config = load_config(spec)
    pad_id = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    if spec.kind == "embedding":
        options = {"add_pooling_layer": False} if row.pooler else {}
        encoder = _from_pretrained(AutoModel, spec, config, device, **options)
        return EmbeddingModel(spec, Encoder(encoder, spec, row.causal), pad_id)
    if spec.kind == "yes_no":
        whole = _from_pretrained(AutoModelForCausalLM, spec, config, device)
        head = whole.get_output_embeddings().weight.detach()
        difference = head[spec.yes_id].float() - head[spec.no_id].float()
        return LastPositionScorer(spec, Encoder(whole.base_model, spec, row.causal), difference, pad_id)
    whole = _from_pretrained(AutoModelForSequenceClassification, spec, config, device)
    if row.causal:
        return LastPositionScorer(spec, Encoder(whole.base_model, spec, row.causal), whole.score.weight.detach()[0].float(), pad_id)
    return Classifier(spec, whole, pad_id)


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
        attn_implementation=device.attention,
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
