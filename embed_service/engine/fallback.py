"""Embedding models of unknown architecture, computed by sentence-transformers."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from embed_service.engine.device import Device
from embed_service.engine.padded import Batch
from embed_service.errors import ModelError
from embed_service.models.spec import ModelSpec


class SentenceTransformerModel:
    """The modules of a sentence-transformers repository, given token ids. Returns unit vectors, float32 [rows, dimensions]."""

    def __init__(self, spec: ModelSpec, modules: torch.nn.Module, pad_id: int) -> None:
        self.spec, self.pad_id, self.columns = spec, pad_id, spec.dimensions
        self._modules = modules

    def __call__(self, batch: Batch) -> torch.Tensor:
        features = self._modules({"input_ids": batch.ids, "attention_mask": batch.mask})
        vectors: torch.Tensor = features["sentence_embedding"]
        return normalize(vectors.float(), dim=1)


def load_sentence_transformer(spec: ModelSpec, device: Device) -> SentenceTransformerModel:
    """Load from the folder alone, without code of the repository. Raises ModelError (unsupported)."""
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            spec.path,
            device=device.type,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": device.dtype, "use_safetensors": True},
            processor_kwargs={"padding_side": "right"},
        ).eval()
    except (ImportError, AttributeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            "unsupported",
            f"EMBED_MODEL={spec.id}: sentence-transformers cannot compute its architecture ({spec.architecture or 'unnamed'}) without "
            f"running the repository's own code, which is never done here ({first}). Choose another embedding model.",
        ) from error
    size = model.get_embedding_dimension()
    if size != spec.dimensions:
        raise ModelError("bad_files", f"EMBED_MODEL={spec.id} gives vectors of {size} dimensions, but its files say {spec.dimensions}.")
    pad_id = getattr(model.tokenizer, "pad_token_id", None)
    return SentenceTransformerModel(spec, model, pad_id if isinstance(pad_id, int) else 0)
