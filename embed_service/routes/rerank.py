"""POST /v1/rerank and its other names."""

from __future__ import annotations

import math
import uuid
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from embed_service.routes.body import read
from embed_service.routes.compute import Computation, answered_model, lane_of
from embed_service.routes.disconnect import while_connected
from embed_service.routes.embeddings import usage
from embed_service.routes.ranking import rank
from embed_service.routes.serialise import json_answer
from embed_service.schemas.rerank import RerankRequest

router = APIRouter()

SEARCH_UNIT_DOCUMENTS = 100  # Cohere bills one query with up to 100 documents as one search unit


@router.post("/v1/rerank")
async def rerank(request: Request) -> Response:
    """Cohere's and Jina's rerank, also at its other names (routes/paths.py). A body with `texts` gets TEI's bare array."""
    computation = Computation(request, lane_of(request))
    wanted = await read(request, RerankRequest)
    rerank = partial(_rerank, computation, wanted)
    work = computation.admitted(rerank) if wanted.candidates else rerank()  # no document needs no model
    return await while_connected(request, work, computation.settings.request_deadline_seconds)


async def _rerank(computation: Computation, wanted: RerankRequest) -> Response:
    candidates = wanted.candidates
    tei = wanted.texts is not None
    served_id = computation.settings.rerank_model
    results: list[dict[str, Any]] = []
    if candidates:
        ranking = await rank(
            computation,
            [(wanted.query, document) for document in candidates],
            instruction=wanted.instruction,
            max_tokens_per_doc=wanted.max_tokens_per_doc,
            refuse_cut=wanted.truncate == "NONE",
            param="texts" if tei else "documents",
        )
        scores = ranking.scores(wanted.raw_scores)
        best = np.argsort(-ranking.raw, kind="stable")[: wanted.most]
        results = [{"index": int(index), "score": float(scores[index])} for index in best]
        served_id = ranking.spec.id
    headers = computation.headers(served_id)
    with_documents = bool(wanted.return_text or wanted.return_documents)
    size = sum(len(candidates[result["index"]]) for result in results) if with_documents else len(results)
    if tei:
        if with_documents:
            results = [{**result, "text": candidates[result["index"]]} for result in results]
        return await json_answer(computation.request, results, headers, size)
    body = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "rerank",
        "model": answered_model(wanted.model, served_id, computation.settings.rerank_model_aliases),
        "results": [_result(result, candidates, with_documents) for result in results],
        "usage": usage(computation),
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": math.ceil(len(candidates) / SEARCH_UNIT_DOCUMENTS)},
            "tokens": {"input_tokens": computation.tokens},
        },
    }
    return await json_answer(computation.request, body, headers, size)


def _result(result: dict[str, Any], candidates: list[str], with_document: bool) -> dict[str, Any]:
    shown = {"index": result["index"], "relevance_score": result["score"], "score": result["score"]}
    return {**shown, "document": {"text": candidates[result["index"]]}} if with_document else shown
