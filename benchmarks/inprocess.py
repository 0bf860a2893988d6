"""The worker behind `workers.SentenceTransformers`: JSON lines in, JSON lines out, times taken around the library's own calls.

{"call": "encode", "texts": […], "batch": 32}          → {"seconds": …, "rows": [[…]] of the first eight}
{"call": "rerank", "query": "…", "documents": […]}     → {"seconds": …, "scores": […]}
{"call": "machine"}                                    → {"gflops": {"float32": …, "bfloat16": …}}
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

SHAPE = (2048, 1024, 3072)  # of the matrix product that tells how fast the processor is


def main(dtype: str, *models: str) -> None:
    """`models`: "embed=FOLDER" and "rerank=FOLDER", either or none."""
    folders = dict(model.split("=", 1) for model in models)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever the libraries print is no answer
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    options = {"dtype": getattr(torch, dtype)}
    encoder = SentenceTransformer(folders["embed"], device="cpu", model_kwargs=options) if "embed" in folders else None
    ranker = CrossEncoder(folders["rerank"], device="cpu", model_kwargs=options) if "rerank" in folders else None

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        if request["call"] == "encode" and encoder is not None:
            rows = encoder.encode(request["texts"], batch_size=request["batch"], show_progress_bar=False)
            return {"seconds": time.perf_counter() - started, "rows": rows[:8].tolist()}
        if request["call"] == "rerank" and ranker is not None:
            pairs = [(request["query"], document) for document in request["documents"]]
            # A score between 0 and 1, as the servers give: a language model's is the bare difference of logits by default.
            scores = ranker.predict(pairs, show_progress_bar=False, activation_fn=torch.nn.Sigmoid())
            return {"seconds": time.perf_counter() - started, "scores": scores.tolist()}
        return {"gflops": {name: _gflops(getattr(torch, name)) for name in ("float32", "bfloat16")}, "threads": torch.get_num_threads()}

    out.write(b'{"ready": true}\n')
    for line in sys.stdin:
        out.write(json.dumps(answer(json.loads(line))).encode() + b"\n")


def _gflops(dtype: Any) -> float:
    """Billions of floating-point operations per second in a linear layer, the best of five."""
    import torch

    rows, inner, columns = SHAPE
    with torch.inference_mode():
        x, w = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            torch.nn.functional.linear(x, w)
            best = min(best, time.perf_counter() - started)
    return 2 * rows * inner * columns / best / 1e9


if __name__ == "__main__":
    main(*sys.argv[1:])
