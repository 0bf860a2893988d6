"""The embed service, asked for the vectors of texts."""

from __future__ import annotations

from typing import Any

import httpx

from qmdctl.errors import QmdError
from qmdctl.laptop.requests import LaptopProbe
from qmdctl.probes import LARGEST, Broken, json_or_none, json_path

BATCH = 32  # as the clients send them


class EmbedServer(LaptopProbe):
    """At `url`, with `key`. `dimensions` is what every request asks for, None: all that the model has."""

    def __init__(self, url: str, timeout_seconds: float, key: str | None, client: httpx.Client) -> None:
        super().__init__("embed", url, timeout_seconds, key, client)
        self.dimensions: int | None = None

    def about(self) -> dict[str, Any]:
        """/health once it is green. QmdError where it is not."""
        try:
            self.health()
            answer = self._send("GET", "/health")
        except Broken as error:
            raise _as_error(self.url, error) from None
        body = json_or_none(answer)
        return body if isinstance(body, dict) else {}

    def vectors(self, texts: list[str], input_type: str | None = None) -> list[list[float]]:
        """One vector for each text. QmdError where the service does not give them."""
        found: list[list[float]] = []
        options: dict[str, Any] = {"input_type": input_type} if input_type else {}
        if self.dimensions:
            options["dimensions"] = self.dimensions
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            try:
                body = self._post("/v1/embeddings", {"input": batch, **options})
                found += [_vector(body, row) for row in range(len(batch))]
            except Broken as error:
                raise _as_error(self.url, error) from None
        return found

    def size(self) -> int:
        """How many numbers the served model's vectors have."""
        return len(self.vectors(["size"])[0])

    def cut_to(self, dimensions: int) -> bool:
        """Ask for vectors of that size from now on; whether the served model has them."""
        self.dimensions = dimensions
        try:
            return self.size() == dimensions
        except QmdError:  # 400: it has no such cut
            self.dimensions = None
            return False


def _vector(body: dict[str, Any], row: int) -> list[float]:
    vector = json_path(body, "data", row, "embedding")
    if not isinstance(vector, list) or not vector or not all(isinstance(x, int | float) and abs(x) < LARGEST for x in vector):
        raise Broken("an embedding has no numbers, or some that are not finite", "on the GPU box: qmdctl restart embed")
    return vector


def _as_error(url: str, error: Broken) -> QmdError:
    return QmdError(f"{url}: {error.why}", f"{error.fix}; the whole way, link by link: qmdctl test" if error.fix else "qmdctl test")
