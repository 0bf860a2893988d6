"""Every error in one form: {"error": {message, type, param, code}, "detail": message}."""

from __future__ import annotations

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embed_service.errors import BadRequest, InternalError, MethodNotAllowed, NotFound, ServiceError
from embed_service.routes.record import record_of
from embed_service.telemetry.logs import get_logger

__all__ = ["CLIENT_CLOSED", "ClientGone", "ErrorMiddleware", "error_response", "http_exception"]

CLIENT_CLOSED = 499  # nginx's number for a client that left before the answer; only the log and the metrics see it
log = get_logger()


class ClientGone(Exception):
    """The client left; nobody reads the answer."""


def error_response(error: ServiceError, status: int | None = None) -> Response:
    """The answer to `error`; `status` where it is not the error's own."""
    body = {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code or error.type},
        "detail": error.message,
    }
    return Response(orjson.dumps(body), status or error.status, error.headers, "application/json")


async def http_exception(request: Request, error: Exception) -> Response:
    """The router's own 404 and 405 in our form."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 405:
        allow = sorted({method.strip() for method in (error.headers or {}).get("Allow", "").split(",") if method.strip()})
        if "GET" in allow and "HEAD" not in allow:
            allow.append("HEAD")
        methods = ", ".join(allow)
        return error_response(MethodNotAllowed(f"{path} takes {methods}, not {record_of(request).method[:20]}.", allow=methods))
    if error.status_code == 404:
        return error_response(NotFound(f"There is nothing at {path}. GET /openapi.json lists the paths.", code="not_found"))
    return error_response(BadRequest(str(error.detail)), error.status_code)


class ErrorMiddleware:
    """Turns every exception into an answer; what nobody foresaw becomes a 500 with the request's id, which the log has too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientGone:
            record_of(scope).status = CLIENT_CLOSED
        except ServiceError as error:
            if started:
                raise
            await error_response(self._with_id(error, scope))(scope, receive, send)
        except Exception:
            record = record_of(scope)
            log.exception("unhandled error", error_id=record.id, route=record.route)
            if started:
                raise
            await error_response(InternalError(f"Internal error; the log has it under the id {record.id}."))(scope, receive, send)

    @staticmethod
    def _with_id(error: ServiceError, scope: Scope) -> ServiceError:
        if error.status != 500:
            return error
        record = record_of(scope)
        log.error("request failed", error_id=record.id, route=record.route, error=error.message)
        return InternalError(f"{error.message} The log has it under the id {record.id}.", param=error.param, code=error.code)
