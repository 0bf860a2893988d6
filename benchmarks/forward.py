"""The worker behind `workers.Forward`: JSON lines in, JSON lines out, times taken around the executor's own calls.

{"call": "embed", "texts": […], "tokens": 2000}   → {"seconds": …, "rows": [[…]] of the first eight}

Texts are tokenised before the clock starts, and laid into micro-batches of at most `tokens` tokens in their order.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

MOST_SEQUENCES = 64  # of a micro-batch, as the service's default


def main(folder: str, dtype: str) -> None:
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever the libraries print is no answer
    import numpy as np
    from tokenizers import Tokenizer

    from embed_service.engine.device import choose_device
    from embed_service.engine.loader import load_executor
    from embed_service.engine.sequences import Sequences
    from embed_service.models.describe import describe
    from embed_service.settings import Settings

    settings = Settings(device="cpu", dtype=dtype)
    device = choose_device(settings)
    spec = describe("embed", folder, "local", folder, settings, folder)
    executor = load_executor({"embed": spec}, device, settings)
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.enable_truncation(spec.max_tokens)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        encoded = [np.array(encoding.ids, np.int32) for encoding in tokenizer.encode_batch(request["texts"])]
        batches = [Sequences.of(encoded[first:end]) for first, end in _runs([len(ids) for ids in encoded], request["tokens"])]
        started = time.perf_counter()
        rows = [executor.run(executor.prepare("embed", batch)).rows for batch in batches]
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "batches": len(batches), "rows": np.concatenate(rows)[:8].tolist()}

    out.write(b'{"ready": true}\n')
    for line in sys.stdin:
        out.write(json.dumps(answer(json.loads(line))).encode() + b"\n")


def _runs(lengths: list[int], tokens: int) -> Iterator[tuple[int, int]]:
    """(first, end) of each micro-batch."""
    first = total = 0
    for index, length in enumerate(lengths):
        if index > first and (total + length > tokens or index - first == MOST_SEQUENCES):
            yield first, index
            first, total = index, 0
        total += length
    if lengths:
        yield first, len(lengths)


if __name__ == "__main__":
    main(*sys.argv[1:])
