"""Fingerprints: what answers depend on.

Two indexes made under the same embedding fingerprint can be searched together. Under the same computing fingerprint equal token ids have
equal rows, on one device and in one precision.
"""

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


def computing_fingerprint(spec: ModelSpec) -> str:
    """64 hexadecimal digits over the whole of `spec` but where its files lie, for either role."""
    parts = {name: value for name, value in spec.to_wire().items() if name != "path"}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
