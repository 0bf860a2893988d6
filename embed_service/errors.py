"""Every error of the service.

ServiceError            answered to a client as {"error": {message, type, param, code}, "detail"}
├── BadRequest          400
├── Unauthorized        401
├── Forbidden           403
├── NotFound            404
├── MethodNotAllowed    405
├── BodyTooLarge        413
├── UnsupportedMedia    415
├── Misdirected         421
├── InternalError       500, with an id that the log has
└── Unavailable         503, with Retry-After
ModelError              a model that cannot be served: code, one sentence with the fix
SettingsError           a setting that cannot be used: names it and the fix
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadRequest",
    "BodyTooLarge",
    "Forbidden",
    "InternalError",
    "MethodNotAllowed",
    "Misdirected",
    "ModelError",
    "NotFound",
    "ServiceError",
    "SettingsError",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMedia",
]


class ServiceError(Exception):
    """An error with an HTTP status. `param` names the field of the request concerned."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    @property
    def headers(self) -> dict[str, str]:
        return {}


class BadRequest(ServiceError):
    status = 400
    type = "invalid_request_error"


class Unauthorized(ServiceError):
    status = 401
    type = "authentication_error"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ServiceError):
    status = 403
    type = "permission_error"


class NotFound(ServiceError):
    status = 404
    type = "not_found_error"


class MethodNotAllowed(ServiceError):
    status = 405
    type = "invalid_request_error"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message, code="method_not_allowed")
        self.allow = allow

    @property
    def headers(self) -> dict[str, str]:
        return {"Allow": self.allow}


class BodyTooLarge(ServiceError):
    status = 413
    type = "invalid_request_error"


class UnsupportedMedia(ServiceError):
    status = 415
    type = "invalid_request_error"


class Misdirected(ServiceError):
    """A browser asked under a host name that is not this server's (RFC 9110, 15.5.20)."""

    status = 421
    type = "permission_error"


class InternalError(ServiceError):
    status = 500
    type = "server_error"


class Unavailable(ServiceError):
    """Load, start-up or a failed engine: the client should come again."""

    status = 503
    type = "service_unavailable"

    def __init__(self, message: str, *, retry_after_seconds: int = 2, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_seconds)}


class ModelError(Exception):
    """A model that cannot be served.

    `code` is one of: not_found, gated, unauthorized, offline, no_disk, no_safetensors, unsupported, bad_files, no_cuda,
    no_mps, no_memory. `retryable`: trying again later may help without a change of settings (network, disk).
    """

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable


class SettingsError(Exception):
    """A setting that cannot be used. The message names the variable and the fix."""
