"""Faults for the engine process, chosen by FAULT. Put this folder on PYTHONPATH; it acts in the engine alone, a child or a Ray actor.

gate    each micro-batch waits for one byte in the named pipe FAULT_GATE/permits while FAULT_GATE/closed exists;
        FAULT_GATE/trace has a JSON line for each that is prepared ("prepared") and each that is to be computed ("started")
nan     SIGUSR1 fills every weight with NaN, as damaged device memory would
oom     FAKE: computing more than FAULT_SEQUENCES sequences at once raises torch's out-of-memory error (no GPU here to fill up)
poison  FAKE: a micro-batch that holds the token id FAULT_TOKEN ends the process, as a sticky CUDA error would
"""

import gc
import json
import os
import signal
import sys


def _nan(*_: object) -> None:
    import torch

    with torch.no_grad():
        for thing in gc.get_objects():
            if isinstance(thing, torch.nn.Module):
                for tensor in (*thing.parameters(recurse=False), *thing.buffers(recurse=False)):
                    if tensor.is_floating_point():
                        tensor.data.fill_(float("nan"))


def _wrap(module_name: str, act: object) -> None:
    """Call `act(module)` once the module of this name is imported."""
    import importlib.abc
    import importlib.machinery

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
            if name != module_name:
                return None
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module

            def exec_module(module):  # type: ignore[no-untyped-def]
                execute(module)
                act(module)

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder())


def _before_run(module, act) -> None:  # type: ignore[no-untyped-def]
    """Have the executor, of whichever kind, call `act(prepared)` before it runs a micro-batch."""
    load = module.load_executor

    def load_executor(*arguments):  # type: ignore[no-untyped-def]
        executor = load(*arguments)
        run = executor.run

        def run_after_act(prepared):  # type: ignore[no-untyped-def]
            act(prepared)
            return run(prepared)

        executor.run = run_after_act
        return executor

    module.load_executor = load_executor


def _poison(module) -> None:  # type: ignore[no-untyped-def]
    token = int(os.environ["FAULT_TOKEN"])

    def act(prepared):  # type: ignore[no-untyped-def]
        if (prepared.sequences.ids == token).any():
            os._exit(9)

    _before_run(module, act)


def _gate_inbox(module) -> None:  # type: ignore[no-untyped-def]
    folder = os.environ["FAULT_GATE"]
    trace = os.open(f"{folder}/trace", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(event, work):  # type: ignore[no-untyped-def]
        lengths = work.prepared.sequences.lengths.tolist()
        line = {"event": event, "lane": work.header["lane"], "role": work.prepared.role, "lengths": lengths}
        os.write(trace, json.dumps(line).encode() + b"\n")

    class Inbox(module.Inbox):
        def put(self, lane, work, **how):  # type: ignore[no-untyped-def]
            super().put(lane, work, **how)
            note("prepared", work)

        def take(self):  # type: ignore[no-untyped-def]
            work = super().take()
            if work is not None:
                note("started", work)
            return work

    module.Inbox = Inbox


def _gate_loader(module) -> None:  # type: ignore[no-untyped-def]
    folder = os.environ["FAULT_GATE"]
    permits = os.open(f"{folder}/permits", os.O_RDWR)

    def act(prepared):  # type: ignore[no-untyped-def]
        if os.path.exists(f"{folder}/closed"):
            os.read(permits, 1)

    _before_run(module, act)


def _oom(module) -> None:  # type: ignore[no-untyped-def]
    import torch

    most, init = int(os.environ["FAULT_SEQUENCES"]), module.PackedExecutor.__init__

    class Full:
        def __init__(self, model):  # type: ignore[no-untyped-def]
            self.model = model

        def __getattr__(self, name):  # type: ignore[no-untyped-def]
            return getattr(self.model, name)

        def __call__(self, pack):  # type: ignore[no-untyped-def]
            if len(pack.lengths) > most:
                raise torch.OutOfMemoryError("FAKE: out of memory")
            return self.model(pack)

    def full(self, models, *rest):  # type: ignore[no-untyped-def]
        init(self, {role: Full(model) for role, model in models.items()}, *rest)

    module.PackedExecutor.__init__ = full


if "embed_service.engine" in sys.orig_argv or any(argument.endswith("/default_worker.py") for argument in sys.orig_argv):  # Ray's
    fault = os.environ.get("FAULT")
    if fault == "nan":
        signal.signal(signal.SIGUSR1, _nan)
    elif fault == "exit":
        os._exit(7)
    elif fault == "poison":
        _wrap("embed_service.engine.loader", _poison)
    elif fault == "oom":
        _wrap("embed_service.engine.packed", _oom)
    elif fault == "gate":
        _wrap("embed_service.engine.process", _gate_inbox)
        _wrap("embed_service.engine.loader", _gate_loader)
