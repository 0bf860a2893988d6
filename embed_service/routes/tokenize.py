"""POST /tokenize and /detokenize, with the embedding model's tokenizer or the reranker's."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from embed_service.errors import BadRequest
from embed_service.routes.body import read
from embed_service.routes.compute import model_header
from embed_service.routes.disconnect import while_connected
from embed_service.routes.record import record_of
from embed_service.routes.serialise import json_answer
from embed_service.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from embed_service.text.tokens import TextTokenizer

router = APIRouter()


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    """The token ids of a text, whole: nothing is cut and no prompt is added."""
    wanted = await read(request, TokenizeRequest)

    async def work() -> Response:
        tokenizer = await _tokenizer(request, wanted.model)
        special = wanted.add_special_tokens is not False
        ids = await request.app.state.tokenize_pool.run(partial(tokenizer.tokenize, wanted.content, add_special_tokens=special))
        record_of(request).tokens = len(ids)
        body = {"tokens": ids, "count": len(ids), "max_model_len": tokenizer.spec.max_tokens}
        return await json_answer(request, body, model_header(tokenizer.spec.id), len(ids))

    return await while_connected(request, work())


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    wanted = await read(request, DetokenizeRequest)

    async def work() -> Response:
        tokenizer = await _tokenizer(request, wanted.model)
        most = tokenizer.spec.vocabulary
        for index, value in enumerate(wanted.tokens):
            if not 0 <= value < most:
                message = f"tokens[{index}]: {value} is not a token id of {tokenizer.spec.id} (0 to {most - 1})."
                raise BadRequest(message, param=f"tokens[{index}]", code="invalid_value")
        skip = bool(wanted.skip_special_tokens)
        text = await request.app.state.tokenize_pool.run(partial(tokenizer.detokenize, wanted.tokens, skip_special_tokens=skip))
        return await json_answer(request, {"prompt": text, "text": text}, model_header(tokenizer.spec.id))

    return await while_connected(request, work())


async def _tokenizer(request: Request, model: object) -> TextTokenizer:
    """The reranker's where `model` names it or one of its aliases, else the embedding model's."""
    state = request.app.state
    settings = state.service.settings
    names = {settings.rerank_model, *settings.rerank_model_aliases} - {settings.embed_model}
    role = "rerank" if isinstance(model, str) and model in names else "embed"
    served = state.service.served(role) or await state.service.wait_ready(role)
    tokenizer: TextTokenizer = served.tokenizer
    return tokenizer
