"""The embedding fingerprint: two indexes made under the same one can be searched together."""

from __future__ import annotations

import hashlib
import json

from embed_service.models.spec import ModelSpec


def embedding_fingerprint(spec: ModelSpec, prompt_policy: str) -> str:
    """12 hexadecimal digits over all that decides which vector a text gets, precision apart.

    A folder is known by the hash of its files (its revision), not by where it lies.
    """
    parts = {
        "id": "" if spec.revision.startswith("local-") else spec.id,
        "revision": spec.revision,
        "pooling": spec.pooling,
        "dimensions": spec.dimensions,
        "max_tokens": spec.max_tokens,
        "quantization": spec.quantization,
        "prompts": spec.prompts,
        "prompt_policy": prompt_policy,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
