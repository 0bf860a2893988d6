"""The engine's life: resolve, load, warm up, then compute what is asked until the HTTP process ends it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from embed_service.engine.executor import Executor, Prepared
from embed_service.engine.inbox import Inbox
from embed_service.engine.outbox import Outbox
from embed_service.engine.protocol import Connection, Header
from embed_service.engine.sequences import Sequences
from embed_service.errors import ModelError, SettingsError
from embed_service.models import hub
from embed_service.models.describe import describe
from embed_service.models.spec import ModelSpec, Role
from embed_service.settings import Settings, load_settings
from embed_service.telemetry import logs

if TYPE_CHECKING:  # torch takes seconds to import: a thread does it while files are downloaded
    from embed_service.engine.device import Device
    from embed_service.engine.memory import MemoryMeter

HEARTBEAT_SECONDS = 1.0
MEMORY_SECONDS = 2.0  # between two looks at the device's memory, which ride on results; canaries bring one every few seconds
FAILED_STATUS = 3
WARM_UP_TOKENS_CPU = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """A `run` message as it stands by: `prepared`, or the error that preparing it raised."""

    header: Header
    prepared: Prepared | Exception


@dataclass(frozen=True)
class _Loaded:
    """What the reading thread needs from the moment that models are loaded."""

    executor: Executor
    inbox: Inbox[Work]


class EngineProcess:
    """`run` has the thread that computes; one thread reads and prepares, one writes results, one sends heartbeats."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outbox = Outbox(connection)
        self._loaded: _Loaded | None = None
        self._meter: MemoryMeter | None = None
        self._measured = float("-inf")

    def run(self) -> NoReturn:
        """Ends the process: status 0 when asked or when the parent is gone, 3 after `failed`, 1 after an error while computing."""
        for target in (self._heartbeat, self._read):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()
        status = 1
        try:
            status = self._run()
        except (BrokenPipeError, ConnectionResetError):
            status = 0  # the HTTP process is gone
        except Exception:
            log.exception("computing failed; the engine ends and is started again")
        finally:
            self._outbox.flush()
            logging.shutdown()
            # Threads of a download cannot be cancelled, and no library's exit handler has anything of ours to save.
            os._exit(status)

    def _run(self) -> int:
        try:
            settings = load_settings()
            logs.configure(settings)
            loaded = self._load(settings)
        except ModelError as error:
            return self._failed(error.code, error.message, error.retryable)
        except SettingsError as error:
            return self._failed("bad_files", str(error), False)
        except Exception as error:
            log.exception("the engine could not load")
            if explained := _explained(error):
                return self._failed(explained.code, explained.message, explained.retryable)
            return self._failed("internal", f"The engine could not load: {type(error).__name__}: {error}. Its log has the traceback.", True)
        while (work := loaded.inbox.take()) is not None:
            self._compute(loaded.executor, work)
            del work  # its tensors need not be on the device while nothing computes
        return 0

    # Loading

    def _load(self, settings: Settings) -> _Loaded:
        self._phase("resolving")
        pool = ThreadPoolExecutor(2, thread_name_prefix="start")
        device_future, specs_future = pool.submit(_import_and_choose, settings), pool.submit(self._describe, settings)
        _gather(device_future, specs_future)
        device, specs = device_future.result(), specs_future.result()

        self._phase("loading")
        from embed_service.engine.loader import load_executor

        for spec in specs.values():
            if not spec.recognised:
                log.warning(
                    "%s_MODEL=%s: architecture %s is not one of ours; it runs on sentence-transformers, padded",
                    spec.role.upper(), spec.id, spec.architecture,
                )  # fmt: skip
        executor = load_executor(specs, device, settings)
        self._phase("warming")
        warm_up(executor, specs, device, settings)
        # Before the HTTP process hears of it: what it asks from then on is prepared at once, and finished before a stop.
        self._loaded = loaded = _Loaded(executor, Inbox(settings.bulk_aging_seconds))
        self._send_ready(executor, device)
        return loaded

    def _describe(self, settings: Settings) -> dict[Role, ModelSpec]:
        """Both repositories on disk and described; says so to the HTTP process, so that tokenisers load while weights do."""
        wanted: dict[Role, tuple[str, str | None]] = {
            "embed": (settings.embed_model, settings.embed_revision),
            "rerank": (settings.rerank_model, settings.rerank_revision),
        }
        cosine = settings.rerank_model == settings.embed_model
        if cosine:
            del wanted["rerank"]
        progress = _Progress(self._connection)
        hub.quiet()
        pool = ThreadPoolExecutor(2, thread_name_prefix="resolve")
        # Both are located before either is downloaded: a wrong id must not come to light after gigabytes of the other model.
        locating = {role: pool.submit(hub.locate, model, revision, settings) for role, (model, revision) in wanted.items()}
        _gather(*locating.values())
        downloading = {role: pool.submit(hub.download, future.result(), progress.of(role)) for role, future in locating.items()}
        _gather(*downloading.values())
        found = {role: future.result() for role, future in downloading.items()}
        if cosine:
            found["rerank"] = found["embed"]
        specs = {
            role: describe(role, repository.id, repository.revision, repository.path, settings, settings.embed_model)
            for role, repository in found.items()
        }
        self._connection.send({"type": "described", "models": {role: spec.to_wire() for role, spec in specs.items()}})
        return specs

    def _send_ready(self, executor: Executor, device: Device) -> None:
        import torch

        from embed_service.engine.memory import MemoryMeter

        self._meter = MemoryMeter(device.type, executor.weights_bytes)
        self._connection.send(
            {
                "type": "ready",
                "device": device.type,
                "dtype": device.dtype_name,
                "cuda_available": torch.cuda.is_available(),
                "executor": executor.name,
                "shares_prefixes": executor.shares_prefixes,
                "attention": device.attention,
                **self._memory(),
            }
        )

    def _memory(self) -> Header:
        """The field `memory`, at most every MEMORY_SECONDS."""
        now = time.monotonic()
        if self._meter is None or now - self._measured < MEMORY_SECONDS:
            return {}
        self._measured = now
        return {"memory": self._meter.read()}

    # Computing

    def _compute(self, executor: Executor, work: Work) -> None:
        number = work.header["id"]
        # What was at an engine that died is written through before and after, so that another death has one possible cause.
        careful = bool(work.header.get("careful"))
        self._outbox.put({"type": "started", "id": number})
        if careful:
            self._outbox.flush()
        if isinstance(work.prepared, Exception):
            raise work.prepared
        started = time.monotonic()
        result = executor.run(work.prepared)
        ended = time.monotonic()
        rows = np.ascontiguousarray(result.rows, np.float32)
        self._outbox.put(
            {
                "type": "result",
                "id": number,
                "rows": rows.shape[0],
                "columns": rows.shape[1],
                "started": started,
                "ended": ended,
                "compute_seconds": ended - started,
                "computed_tokens": result.computed_tokens,
                "padded_tokens": result.padded_tokens,
                "oom_splits": result.oom_splits,
                "failed": {str(index): sentence for index, sentence in result.failed.items()},
                **self._memory(),
            },
            rows.tobytes(),
        )
        if careful:
            self._outbox.flush()

    # Messages

    def _phase(self, phase: str) -> None:
        self._connection.send({"type": "phase", "phase": phase})

    def _failed(self, code: str, message: str, retryable: bool) -> int:
        self._connection.send({"type": "failed", "code": code, "message": message, "retryable": retryable})
        return FAILED_STATUS

    def _heartbeat(self) -> None:
        while True:
            try:
                self._connection.send({"type": "heartbeat"})
            except OSError:
                os._exit(0)
            time.sleep(HEARTBEAT_SECONDS)

    def _read(self) -> None:
        while (message := self._connection.receive()) is not None:
            header, body = message
            if header["type"] == "run":
                assert self._loaded is not None, "the HTTP process asks for nothing before `ready`"
                self._loaded.inbox.put(header["lane"], _prepare(self._loaded.executor, header, body), at_once=header.get("canary", False))
            elif header["type"] == "stop":
                if self._loaded is None:
                    os._exit(0)
                self._loaded.inbox.close()
        os._exit(0)


def _prepare(executor: Executor, header: Header, body: bytes) -> Work:
    try:
        return Work(header, executor.prepare(header["role"], Sequences.from_bytes(body, header["count"])))
    except Exception as error:  # raised again in the main thread, when this micro-batch's turn comes
        return Work(header, error)


class _Progress:
    """Adds up the bytes of downloads that run side by side."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bytes: dict[Role, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def of(self, role: Role) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            with self._lock:
                self._bytes[role] = (done, total)
                sums = [sum(column) for column in zip(*self._bytes.values(), strict=True)]
            self._connection.send({"type": "phase", "phase": "downloading", "done_bytes": sums[0], "total_bytes": sums[1]})

        return report


def _gather(*futures: Future[Any]) -> None:
    """Wait for all, or raise the first error at once: what the others still do is ended with the process."""
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future in done:
            future.result()


def warm_up(executor: Executor, specs: dict[Role, ModelSpec], device: Device, settings: Settings) -> None:
    """Short and long sequences through every model, so that kernels are chosen and a GPU's memory is taken before the first request.

    Raises ModelError (no_memory) where even the shortest does not fit.
    """
    for role, spec in specs.items():
        if spec.kind == "cosine":
            continue
        longest = min(spec.max_tokens, settings.max_batch_tokens if device.type == "cuda" else WARM_UP_TOKENS_CPU)
        for length, count in ((8, 1), (min(64, longest), 4), (longest, 1)):
            ids = np.random.default_rng(length).integers(0, spec.vocabulary, (count, length), np.int32)
            failed = executor.run(executor.prepare(role, Sequences.of(list(ids)))).failed
            if failed and length == 8:
                raise ModelError(
                    "no_memory",
                    f"{role.upper()}_MODEL={spec.id} is loaded, but {device.type} has no memory left to compute with: "
                    "choose a smaller model, free memory, or raise EMBED_MEMORY_GB.",
                    retryable=True,
                )
            if failed:
                log.warning("%s_MODEL=%s: %s", role.upper(), spec.id, failed[0])


def _explained(error: Exception) -> ModelError | None:
    if "torch" not in sys.modules:
        return None
    from embed_service.engine.device import explain

    return explain(error)


def _import_and_choose(settings: Settings) -> Device:
    from embed_service.engine.device import choose_device

    device = choose_device(settings)
    import transformers.modeling_utils  # noqa: F401  # most of what loading imports
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    return device
