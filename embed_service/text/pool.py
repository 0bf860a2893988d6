"""Threads that tokenise, so that the event loop never does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

__all__ = ["TokenizerPool"]

R = TypeVar("R")

CHUNK_CHARACTERS = 65_536  # about 20 ms of work: long enough to be worth a thread, short enough that a search gets its turn


class TokenizerPool:
    """The `tokenizers` library releases the GIL, so threads suffice. Close it when the service stops."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="tokenise")

    async def run(self, function: Callable[[], R]) -> R:
        """`function()` in a thread of the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def map(self, function: Callable[[Sequence[str]], list[R]], texts: Sequence[str]) -> list[R]:
        """`function` over runs of `texts`, its lists joined in order. Texts not begun when the caller is cancelled are dropped."""
        parts = await asyncio.gather(*(self.run(partial(function, run)) for run in _runs(texts)))
        return [item for part in parts for item in part]

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


def _runs(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = characters = 0
    for index, text in enumerate(texts):
        characters += len(text) + 64  # a text costs something even when it is empty
        if characters >= CHUNK_CHARACTERS:
            yield texts[start : index + 1]
            start, characters = index + 1, 0
    if start < len(texts):
        yield texts[start:]
