"""Faults for the engine process, chosen by FAULT. Put this folder on PYTHONPATH; it acts in the engine alone.

nan     SIGUSR1 fills every weight with NaN, as damaged device memory would
oom     FAKE: computing more than FAULT_SEQUENCES sequences at once raises torch's out-of-memory error (no GPU here to fill up)
poison  FAKE: a micro-batch that holds the token id FAULT_TOKEN ends the process, as a sticky CUDA error would
"""

import gc
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


def _wrap(act: object) -> None:
    """Call `act(module)` on the packed executor's module once it is imported."""
    import importlib.abc
    import importlib.machinery

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
            if name != "embed_service.engine.packed":
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


def _poison(module) -> None:  # type: ignore[no-untyped-def]
    token, run = int(os.environ["FAULT_TOKEN"]), module.PackedExecutor.run

    def poisoned(self, prepared):  # type: ignore[no-untyped-def]
        if (prepared.sequences.ids == token).any():
            os._exit(9)
        return run(self, prepared)

    module.PackedExecutor.run = poisoned


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


if "embed_service.engine" in sys.orig_argv:
    fault = os.environ.get("FAULT")
    if fault == "nan":
        signal.signal(signal.SIGUSR1, _nan)
    elif fault == "exit":
        os._exit(7)
    elif fault == "poison":
        _wrap(_poison)
    elif fault == "oom":
        _wrap(_oom)
