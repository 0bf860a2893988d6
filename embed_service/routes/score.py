"""POST /v1/score: pairs of texts, in vLLM's shape."""

from __future__ import annotations

import time
import uuid
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from embed_service.routes.body import read
from embed_service.routes.compute import Computation, answered_model, lane_of
from embed_service.routes.disconnect import while_connected
from embed_service.routes.embeddings import usage
from embed_service.routes.ranking import rank
from embed_service.routes.serialise import json_answer
from embed_service.schemas.score import ScoreRequest

router = APIRouter()


@router.post("/v1/score")
async def score(request: Request) -> Response:
    """One score per pair, in order: one text with each of many, or two lists of one length."""
    computation = Computation(request, lane_of(request))
    wanted = await read(request, ScoreRequest)
    work = computation.admitted(partial(_score, computation, wanted))
    return await while_connected(request, work, computation.settings.request_deadline_seconds)


async def _score(computation: Computation, wanted: ScoreRequest) -> Response:
    ranking = await rank(
        computation,
        wanted.pairs(),
        instruction=wanted.instruction,
        max_tokens_per_doc=wanted.max_tokens_per_doc,
        refuse_cut=wanted.truncate == "NONE",
        param=wanted.second_name,
        query_param=wanted.first_name,
    )
    scores = ranking.scores(wanted.raw_scores)
    body = {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": answered_model(wanted.model, ranking.spec.id, computation.settings.rerank_model_aliases),
        "data": [{"index": index, "object": "score", "score": float(value)} for index, value in enumerate(scores)],
        "usage": usage(computation),
    }
    return await json_answer(computation.request, body, computation.headers(ranking.spec.id))
