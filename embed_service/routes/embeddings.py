"""POST /v1/embeddings."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from embed_service.errors import BadRequest
from embed_service.models.spec import ModelSpec
from embed_service.routes.body import read
from embed_service.routes.compute import Computation, Lane, answered_model, lane_of
from embed_service.routes.disconnect import while_connected
from embed_service.routes.serialise import embedding_values, json_answer, shorten
from embed_service.schemas.embeddings import EmbeddingsRequest
from embed_service.settings import Settings
from embed_service.text.prompts import Prompter
from embed_service.text.tokens import Side, TextTokenizer, Tokenised

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    """OpenAI embeddings: one unit vector per text, in input order."""
    computation = Computation(request, lane_of(request))
    wanted = await read(request, EmbeddingsRequest)
    work = computation.admitted(partial(_embed, computation, wanted))
    return await while_connected(request, work, computation.settings.request_deadline_seconds)


async def _embed(computation: Computation, wanted: EmbeddingsRequest) -> Response:
    served = await computation.service.wait_ready("embed")
    spec, settings = served.spec, computation.settings
    if wanted.dimensions is not None and wanted.dimensions > spec.dimensions:
        message = f"dimensions: {spec.id} gives {spec.dimensions}; ask for 1 to {spec.dimensions}."
        raise BadRequest(message, param="dimensions", code="invalid_value")
    if wanted.instruction and not spec.instruct:
        computation.dropped.append("instruction")
    sequences = await computation.tokenised("embed", _tokenise(computation, wanted, served.tokenizer))
    if wanted.truncate == "NONE":
        computation.refuse_cut(sequences, spec, "input")
    computation.count("embed", sequences)
    rows = await computation.rows(served, sequences, _lane(settings, sequences))

    def body() -> dict[str, Any]:
        short = rows if wanted.dimensions is None else shorten(rows, wanted.dimensions, spec.matryoshka_layer_norm)
        values = embedding_values(short, wanted.encoding_format or "float")
        return {
            "object": "list",
            "model": answered_model(wanted.model, spec.id, settings.embed_model_aliases),
            "data": [{"object": "embedding", "index": index, "embedding": value} for index, value in enumerate(values)],
            "usage": usage(computation),
        }

    return await json_answer(computation.request, body, computation.headers(spec.id), rows.size)


def usage(computation: Computation) -> dict[str, int]:
    """Tokens as computed; cut texts are counted where there are any."""
    counted = {"prompt_tokens": computation.tokens, "total_tokens": computation.tokens}
    return {**counted, "truncated_inputs": computation.truncated} if computation.truncated else counted


async def _tokenise(computation: Computation, wanted: EmbeddingsRequest, tokenizer: TextTokenizer) -> list[Tokenised]:
    spec = tokenizer.spec
    most = spec.max_tokens
    if wanted.truncate_prompt_tokens is not None and wanted.truncate_prompt_tokens > 0:
        most = min(most, wanted.truncate_prompt_tokens)
    side: Side = "START" if wanted.truncate == "START" else "END"
    prompter = Prompter(spec, computation.settings.prompt_policy)
    choice = {"input_type": wanted.input_type, "prompt_name": wanted.prompt_name, "instruction": wanted.instruction}
    if texts := wanted.texts:
        prompted = prompter.apply(texts, **choice)
        return await computation.state.pool.map(partial(tokenizer.texts, max_tokens=most, side=side), prompted)  # type: ignore[no-any-return]
    prompter.apply([], **choice)  # a wrong choice is an error for ids too

    def take() -> list[Tokenised]:
        given = wanted.token_lists
        _check_ids(given, spec, single=wanted.one_token_list)
        return [tokenizer.given(ids, max_tokens=most, side=side) for ids in given]

    return await computation.state.pool.run(take)  # type: ignore[no-any-return]


def _check_ids(given: list[list[int]], spec: ModelSpec, *, single: bool) -> None:
    for index, ids in enumerate(given):
        if min(ids) >= 0 and max(ids) < spec.vocabulary:
            continue
        position = next(n for n, value in enumerate(ids) if not 0 <= value < spec.vocabulary)
        name = f"input[{position}]" if single else f"input[{index}][{position}]"
        limits = f"0 to {spec.vocabulary - 1}"
        message = f"{name}: {ids[position]} is not a token id of {spec.id} ({limits}). Send text, or tokenise with POST /tokenize."
        raise BadRequest(message, param=name, code="invalid_value")


def _lane(settings: Settings, sequences: list[Tokenised]) -> Lane:
    small = len(sequences) <= settings.interactive_max_texts and sum(len(s.ids) for s in sequences) <= settings.interactive_max_tokens
    return "interactive" if small else "bulk"
