"""One request and its whole answer within a time and a size. httpx's own limits are for each read: a server that drips outlasts them."""

from __future__ import annotations

import threading
import time
from queue import Empty, Queue
from typing import Any

import httpx

ANSWER_BYTES = 16 * 1024 * 1024


class TooLarge(httpx.HTTPError):
    """An answer of more than `ANSWER_BYTES`."""

    def __init__(self) -> None:
        super().__init__(f"the answer is larger than {ANSWER_BYTES // 1024**2} MiB")


def exchange(client: httpx.Client, method: str, url: str, seconds: float, **options: Any) -> httpx.Response:
    """The answer, read to its end. httpx.TimeoutException after `seconds` in all, TooLarge, and httpx's other errors."""
    end = time.monotonic() + seconds
    results: Queue[httpx.Response | Exception] = Queue()

    def work() -> None:
        try:
            results.put(_read(client, method, url, seconds, end, options))
        except Exception as error:  # raised again where it is waited for
            results.put(error)

    # Headers that drip cannot be given up from outside; a daemon thread does not hold the program's end up.
    threading.Thread(target=work, daemon=True).start()
    try:
        result = results.get(timeout=seconds + 0.1)  # httpx's own word comes first
    except Empty:
        raise httpx.ReadTimeout(f"no whole answer in {seconds:g} s") from None
    if isinstance(result, Exception):
        raise result
    return result


def _read(client: httpx.Client, method: str, url: str, seconds: float, end: float, options: dict[str, Any]) -> httpx.Response:
    content = bytearray()
    with client.stream(method, url, timeout=seconds, **options) as answer:
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > ANSWER_BYTES:
                raise TooLarge
            if time.monotonic() > end:
                raise httpx.ReadTimeout(f"no whole answer in {seconds:g} s")
        # Its content is decoded here; what told of the coding would have it decoded again.
        headers = [(name, value) for name, value in answer.headers.multi_items() if name not in ("content-encoding", "content-length")]
        return httpx.Response(answer.status_code, headers=headers, content=bytes(content), request=answer.request)
