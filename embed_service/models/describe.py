"""From a repository on disk to what is served, without loading weights."""

from __future__ import annotations

import dataclasses
from typing import Any

from tokenizers import Tokenizer

from embed_service.errors import ModelError
from embed_service.models.architectures import ARCHITECTURES, JUDGE_PREFIX, JUDGE_SUFFIX, NO_THINKING, QWEN3_TASK, Architecture
from embed_service.models.repository import POOLINGS, Repository
from embed_service.models.spec import Kind, ModelSpec, Pooling, Role
from embed_service.settings import Settings

PACKED_MODULES = {"Transformer", "Pooling", "Normalize"}
CHOOSE_A_RERANKER = "Choose a reranker, for example Qwen/Qwen3-Reranker-0.6B or BAAI/bge-reranker-v2-m3"
# Old names in a nomic config. Its n_positions stands before transformers' default of 2048: rotary positions have no table.
OLD_NOMIC = {"n_positions": "max_position_embeddings", "n_embd": "hidden_size"}


def describe(role: Role, model_id: str, revision: str, path: str, settings: Settings, embed_id: str) -> ModelSpec:
    """The spec of the model in folder `path`. Raises ModelError, which names the setting and the fix.

    A reranker whose id is `embed_id` is the embedding model again, of kind `cosine`.
    """
    if role == "rerank" and model_id == embed_id:
        spec = describe("embed", model_id, revision, path, settings, embed_id)
        return dataclasses.replace(spec, role="rerank", kind="cosine")
    repository = Repository(path, f"{role.upper()}_MODEL={model_id}")
    method = (repository.config.get("quantization_config") or {}).get("quant_method")
    if method:
        raise repository.unsupported(f"is quantised ({method}), which is not supported. Choose the unquantised model.")
    repository.require_safetensors()
    architecture = ARCHITECTURES.get(str(repository.config.get("model_type")))
    tokenizer = repository.tokenizer()
    common: dict[str, Any] = {
        "role": role,
        "id": model_id,
        "revision": revision,
        "path": str(path),
        "architecture": str(repository.config.get("model_type", "")),
        "max_tokens": min([settings.max_input_tokens, *_position_limits(repository, architecture), *repository.sequence_limits()]),
        "vocabulary": _vocabulary(repository, tokenizer, role),
        "segments": bool(architecture and architecture.segments and repository.config.get("type_vocab_size", 2) > 1),
    }
    if role == "embed":
        return _embedding(repository, architecture, common)
    return _reranker(repository, architecture, common, tokenizer)


def _embedding(repository: Repository, architecture: Architecture | None, common: dict[str, Any]) -> ModelSpec:
    name = repository.architecture
    if repository.is_cross_encoder or name.endswith("ForSequenceClassification"):
        raise repository.unsupported(f"is a reranker or classifier ({name}), not an embedding model. Set it as RERANK_MODEL instead.")
    if name.endswith(("ForCausalLM", "ForConditionalGeneration")) and not repository.is_embedding_model:
        raise repository.unsupported(
            f"generates text ({name}) and has no modules.json that makes it an embedding model. "
            "Choose an embedding model, for example Qwen/Qwen3-Embedding-0.6B."
        )
    modes = repository.pooling_modes()
    kinds = architecture.kinds if architecture else frozenset[Kind]()
    recognised = (
        "embedding" in kinds
        and set(repository.module_types) <= PACKED_MODULES
        and len(modes) <= 1
        and all(mode in POOLINGS for mode in modes)
    )
    pooling: Pooling | None = None
    if recognised and architecture is not None:
        pooling = POOLINGS[modes[0]] if modes else architecture.pooling
    return ModelSpec(
        **common,
        kind="embedding",
        recognised=recognised,
        dimensions=_dimensions(repository, len(modes) or 1),
        pooling=pooling,
        prompts=_prompts(repository, architecture),
        instruct=bool(architecture and architecture.instruct),
        matryoshka_layer_norm=bool(architecture and architecture.matryoshka_layer_norm),
    )


def _reranker(repository: Repository, architecture: Architecture | None, common: dict[str, Any], tokenizer: Tokenizer) -> ModelSpec:
    name = repository.architecture
    if repository.is_embedding_model:
        raise repository.unsupported(
            f"is an embedding model, not a reranker. {CHOOSE_A_RERANKER}, or the same value as EMBED_MODEL to rerank by cosine."
        )
    if name.endswith("ForSequenceClassification"):
        kind: Kind = "classifier"
    elif name.endswith("ForCausalLM"):
        kind = "yes_no"
    else:
        raise repository.unsupported(f"is {name or 'unnamed'}, neither …ForSequenceClassification nor …ForCausalLM. {CHOOSE_A_RERANKER}.")
    if architecture is None or kind not in architecture.kinds:
        served = ", ".join(sorted(key for key, row in ARCHITECTURES.items() if kind in row.kinds))
        raise repository.unsupported(
            f"is a reranker of the architecture {common['architecture']} ({name}), which is not supported; these are: {served}."
        )
    if kind == "classifier" and repository.labels() != 1:
        raise repository.unsupported(f"has {repository.labels()} labels, and a reranker has one. {CHOOSE_A_RERANKER}.")
    if not architecture.causal:
        return ModelSpec(**common, kind=kind)
    if tokenizer.token_to_id("<|im_start|>") is None:
        raise repository.unsupported(f"has no token <|im_start|>, which the yes/no template is written with. {CHOOSE_A_RERANKER}.")
    return ModelSpec(
        **common,
        kind=kind,
        yes_id=_single_token(repository, tokenizer, "yes") if kind == "yes_no" else -1,
        no_id=_single_token(repository, tokenizer, "no") if kind == "yes_no" else -1,
        template_prefix=JUDGE_PREFIX,
        template_suffix=JUDGE_SUFFIX + (NO_THINKING if architecture.thinks else ""),
        template_instruction=QWEN3_TASK,
    )


def _position_limits(repository: Repository, architecture: Architecture | None) -> list[int]:
    """The positions that the model has, if config.json says."""
    config = {OLD_NOMIC.get(key, key): value for key, value in repository.config.items()}
    positions = config.get("max_position_embeddings")
    return [int(positions) - (architecture.reserved_positions if architecture else 0)] if isinstance(positions, int) else []


def _vocabulary(repository: Repository, tokenizer: Tokenizer, role: Role) -> int:
    """Rows of the embedding table. An id past them would be an illegal read on a GPU, so a tokeniser that has one is refused.

    Qwen3-Embedding-4B's table has 151,665 rows, and Qwen3's tokeniser adds four tokens past them (<tool_response> … </think>) that mean
    nothing to an embedding. Such tokens are read as plain text (text/tokens.py); a reranker's template may need them.
    """
    config = repository.config
    size = int((config.get("text_config") or config).get("vocab_size", 0)) or tokenizer.get_vocab_size()
    used = tokenizer.get_vocab(with_added_tokens=role != "embed").values()
    largest = max([*used, *tokenizer.encode("a").ids], default=0)
    if largest >= size:
        raise ModelError(
            "bad_files",
            f"{repository.name}: tokenizer.json has the id {largest}, but config.json's vocab_size is {size}: the files do not belong "
            "together. Choose another revision.",
        )
    return size


def _dimensions(repository: Repository, modes: int) -> int:
    if size := repository.module_config("Dense").get("out_features"):
        return int(size)
    pooling = repository.module_config("Pooling")
    config = {OLD_NOMIC.get(key, key): value for key, value in repository.config.items()}
    size = pooling.get("embedding_dimension") or pooling.get("word_embedding_dimension")
    return int(size or (config.get("text_config") or config).get("hidden_size", 0)) * modes


def _prompts(repository: Repository, architecture: Architecture | None) -> dict[str, str]:
    """The repository's prompts over the architecture's, always with "query" and "document"."""
    own = {str(name): str(text) for name, text in (repository.sentence_transformers.get("prompts") or {}).items()}
    defaults = {"query": "", "document": "", **(architecture.prompts if architecture else {})}
    # sentence-transformers writes empty entries for prompts that nobody set.
    return {**defaults, **{name: text for name, text in own.items() if text or name not in defaults}}


def _single_token(repository: Repository, tokenizer: Tokenizer, word: str) -> int:
    ids = tokenizer.encode(word, add_special_tokens=False).ids
    if len(ids) != 1:
        raise repository.unsupported(f'splits "{word}" into {len(ids)} tokens, so it cannot judge by one. {CHOOSE_A_RERANKER}.')
    return int(ids[0])
