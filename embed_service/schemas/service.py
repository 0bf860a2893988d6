"""What the service tells of itself, and errors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ErrorResponse", "Health", "Live", "ModelCard", "Models", "Version"]


class ErrorDetail(BaseModel):
    message: str = Field(description="What is wrong and how to mend it.")
    type: str
    param: str | None = Field(description="The field of the request concerned, with its index.")
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorDetail
    detail: str = Field(description="The message again, for clients that read this name.")


class Health(BaseModel):
    """200 when warm or idle (the next request loads the models); otherwise 503 with the same fields."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    status: Literal["ok", "idle", "loading", "paused", "error"]
    models: dict[str, str]
    revisions: dict[str, str] | None = Field(None, description="The commit of each model, once its files are on disk.")
    device: str | None
    cuda_available: bool | None
    phase: str | None = None
    fingerprint: str | None = None
    prompt_policy: str | None = None
    version: str | None = None
    uptime_seconds: float | None = None
    engine: dict[str, Any] | None = None
    error: Any = Field(None, description="Cause and fix in one sentence.")


class Live(BaseModel):
    status: Literal["ok"]


class Version(BaseModel):
    version: str


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="The served model behind an alias.")


class Models(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]
