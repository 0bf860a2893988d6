"""Answers as bytes: float32 in its shortest decimal form, base64, gzip; large ones off the event loop."""

from __future__ import annotations

import asyncio
import base64
import gzip
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

if TYPE_CHECKING:
    from embed_service.settings import Settings

__all__ = ["embedding_values", "json_answer", "shorten"]

LARGE = 32_768  # numbers or characters: from here on serialising takes about a millisecond or more


def embedding_values(rows: NDArray[np.float32], encoding: str) -> list[Any]:
    """One value per row of float32 [n, d] for orjson: its JSON text in shortest float32 form, or base64 of little-endian float32.

    Row by row, because orjson holds the GIL for the whole of a call, in whatever thread: between two rows the event loop gets its turn.
    """
    if encoding == "base64":
        return [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode() for row in rows]
    return [orjson.Fragment(_dumps(row)) for row in np.ascontiguousarray(rows)]


def shorten(rows: NDArray[np.float32], dimensions: int, layer_norm: bool) -> NDArray[np.float32]:
    """The first `dimensions` of each unit row, renormalised (Matryoshka).

    `layer_norm` (nomic-embed-text-v1.5's model card): a layer norm over the whole vector comes before the cut. What is left of it after
    renormalising is the subtraction of the mean: its division scales every dimension alike.
    """
    if dimensions >= rows.shape[1]:
        return rows
    wide = rows.astype(np.float64)
    if layer_norm:
        wide = wide - wide.mean(axis=1, keepdims=True)
    cut = wide[:, :dimensions]
    norm = np.linalg.norm(cut, axis=1, keepdims=True)
    cut = np.where(norm > 0, cut / np.where(norm > 0, norm, 1), np.eye(1, dimensions))
    return cut.astype(np.float32)


async def json_answer(request: Request, body: Any | Callable[[], Any], headers: dict[str, str], size: int = 0) -> Response:
    """`body`, or what it returns, as JSON, compressed when the client asks for gzip and it is GZIP_MIN_BYTES or more.

    `size` tells how many numbers or characters are in it: a large body is made, written and compressed in a thread.
    """
    settings: Settings = request.app.state.settings
    least = settings.gzip_min_bytes if accepts_gzip(request.headers.get("accept-encoding", "")) else None
    if size < LARGE:
        content = _dumps(body() if callable(body) else body)
        compress = least is not None and len(content) >= least
        if compress:
            content = await asyncio.to_thread(_gzip, content)
    else:
        content, compress = await asyncio.to_thread(_written, body, least)
    coding = {"content-encoding": "gzip"} if compress else {}
    return Response(content, 200, {**headers, "vary": "accept-encoding", **coding}, "application/json")


def accepts_gzip(header: str) -> bool:
    """Whether Accept-Encoding names gzip (or *) with a weight above 0."""
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        name, _, parameters = part.partition(";")
        weight = parameters.strip().removeprefix("q=") if parameters else "1"
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            weights[name.strip()] = 0.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def _dumps(body: Any) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=1, mtime=0)


def _written(body: Any | Callable[[], Any], least: int | None) -> tuple[bytes, bool]:
    content = _dumps(body() if callable(body) else body)
    if least is not None and len(content) >= least:
        return _gzip(content), True
    return content, False
