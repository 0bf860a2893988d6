"""Who computes a request: this service's executor, and its peers, on the same weights in the same memory."""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize, rms_norm

from benchmarks.gpu_shapes import Shape
from embed_service.engine.attention import NAME, shares_prefixes, varlen_works
from embed_service.engine.heads import Body, EmbeddingModel, LastPositionScorer, PackedModel
from embed_service.engine.pack import Layout
from embed_service.engine.packed import PackedExecutor
from embed_service.engine.sequences import Sequences
from embed_service.models.spec import Kind, ModelSpec, Role

Rows = NDArray[np.float32]
BATCH = 32  # sentence-transformers' default
ROWS, TOKENS = 64, 16_384  # MAX_BATCH_SIZE and MAX_BATCH_TOKENS as they are by default
OURS = "this service"
BOTH: tuple[Role, ...] = ("embed", "rerank")


class NotHere(Exception):
    """A peer that this machine does not have. The message says why."""


class Contestant(Protocol):
    """`shares`: computes a prefix that texts have in common once. `begin` and `end` stand around its turn and are not timed."""

    name: str
    shares: bool
    roles: tuple[Role, ...]

    def begin(self) -> None: ...
    def run(self, role: Role, sequences: Sequences) -> Rows | None:
        """float32 [n, dimensions] unit vectors or [n, 1] logits on the CPU; None where it gives no comparable ones."""
        ...

    def end(self) -> None: ...


class Ours:
    """The packed executor, as the engine calls it. `variant`: what is changed about the model for this contestant's turns."""

    roles = BOTH

    def __init__(
        self, body: Any, shape: Shape, head: torch.Tensor, name: str = OURS, variant: Callable[[Any], Callable[[], None]] | None = None
    ) -> None:
        self.name = name
        device = next(body.parameters()).device
        self.varlen = device.type == "cuda" and varlen_works() is None
        self.shares = shares_prefixes(device, self.varlen)
        self.executor = PackedExecutor(packed_models(body, shape, head, self.varlen), device.type, ROWS, TOKENS)
        self._body, self._variant = body, variant
        self._undo: Callable[[], None] | None = None

    def begin(self) -> None:
        self._body.set_attn_implementation(NAME)
        self._undo = self._variant(self._body) if self._variant else None

    def run(self, role: Role, sequences: Sequences) -> Rows:
        result = self.executor.run(self.executor.prepare(role, sequences))
        if result.failed or result.oom_splits:
            raise RuntimeError(f"{self.name} ran out of memory: nothing it measures here means anything")
        return result.rows

    def end(self) -> None:
        if self._undo is not None:
            self._undo()


def packed_models(body: Any, shape: Shape, head: torch.Tensor, varlen: bool) -> dict[Role, PackedModel]:
    """An embedding model and a reranker on one body. `head`: float32 [hidden], the reranker's row."""
    device = next(body.parameters()).device
    layout = Layout(
        device=torch.device(device.type),
        causal=True,
        varlen=varlen,
        shares_prefixes=shares_prefixes(device, varlen),
        segments=False,
        pad_id=0,
    )

    def spec(role: Role) -> ModelSpec:
        kind: Kind = "embedding" if role == "embed" else "yes_no"
        return ModelSpec(role, shape.name, "random", "", "qwen3", kind, 32_768, shape.vocabulary, dimensions=shape.hidden, pooling="last")

    return {
        "embed": EmbeddingModel(spec("embed"), Body(body, layout)),
        "rerank": LastPositionScorer(spec("rerank"), Body(body, layout), head),
    }


def fuse_norms(body: Any) -> Callable[[], None]:
    """Compute RMSNorm in torch's one kernel instead of transformers' five. Returns what undoes it."""
    norms = [module for module in body.modules() if type(module).__name__.endswith("RMSNorm")]
    for norm in norms:
        norm.forward = _fused(norm)

    def undo() -> None:
        for norm in norms:
            del norm.forward

    return undo


def _fused(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


class Padded:
    """transformers' own forward on rectangles of 32 texts sorted by length, which is what CrossEncoder.predict computes."""

    shares = False
    roles = BOTH

    def __init__(self, body: Any, head: torch.Tensor, attention: str) -> None:
        self.name = f"transformers, padded, {attention}"
        self._body, self._head, self._attention = body, head, attention
        self._device = next(body.parameters()).device
        try:
            body.set_attn_implementation(attention)
        except (ImportError, ValueError) as error:
            raise NotHere(f"{self.name}: {str(error).strip().partition(chr(10))[0]}") from None
        finally:
            body.set_attn_implementation(NAME)

    def begin(self) -> None:
        self._body.set_attn_implementation(self._attention)

    def end(self) -> None:
        self._body.set_attn_implementation(NAME)

    @torch.inference_mode()
    def run(self, role: Role, sequences: Sequences) -> Rows:
        pieces = sequences.split()
        order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))
        rows: Rows = np.zeros((len(pieces), 1 if role == "rerank" else self._body.config.hidden_size), np.float32)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            rows[some] = self._rectangle(role, *rectangle([pieces[i] for i in some])).cpu().numpy()
        return rows

    def _rectangle(self, role: Role, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ids, mask = ids.to(self._device), mask.to(self._device)
        hidden = self._body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(ids), device=self._device), mask.sum(1) - 1].float()
        return normalize(last, dim=1) if role == "embed" else (last @ self._head)[:, None]


def rectangle(pieces: Sequence[NDArray[np.int32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask int64 [texts, longest], padded on the right."""
    lengths = np.array([len(piece) for piece in pieces])
    real = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(real.shape, np.int64)
    ids[real] = np.concatenate(pieces)
    return torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64))


class Library:
    """`SentenceTransformer.encode`: its own sorting, batches of 32, pooling, normalising and copying, around the model in memory.

    Its first module stands in for `Transformer`, which can only be loaded from a folder; a text is its ids written out.
    """

    shares = False
    roles: tuple[Role, ...] = ("embed",)

    def __init__(self, body: Any, attention: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
        except ImportError as error:
            raise NotHere(f"sentence-transformers 6 is not installed ({error})") from None
        self.name = f"sentence-transformers, {attention}"
        self._turn = Padded(body, torch.zeros(0), attention)
        device = next(body.parameters()).device
        modules = [_InMemory(body), Pooling(body.config.hidden_size, "lasttoken"), Normalize()]
        self._model = SentenceTransformer(modules=modules, device=device.type)

    def begin(self) -> None:
        self._turn.begin()

    def end(self) -> None:
        self._turn.end()

    def run(self, role: Role, sequences: Sequences) -> Rows:
        texts = [" ".join(map(str, ids.tolist())) for ids in sequences.split()]
        rows: Rows = self._model.encode(texts, batch_size=BATCH, show_progress_bar=False).astype(np.float32)
        return rows


class _InMemory(torch.nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def preprocess(self, inputs: list[str], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        ids, mask = rectangle([np.array(text.split(), np.int32) for text in inputs])
        return {"input_ids": ids, "attention_mask": mask}

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        out = self.body(input_ids=features["input_ids"], attention_mask=features["attention_mask"], use_cache=False)
        return {**features, "token_embeddings": out.last_hidden_state}


class Vllm:
    """vLLM's pooling runner with prefix caching, on a copy of the weights. Its embedding stands for a reranker's logit too:
    both are one row at the last position.
    """

    shares = True
    roles = BOTH

    def __init__(self, folder: Path, memory_fraction: float) -> None:
        try:
            vllm: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise NotHere(f"vLLM is not installed ({error})") from None
        self.name = f"vLLM {vllm.__version__} pooling"
        self._llm = vllm.LLM(
            model=str(folder),
            runner="pooling",
            convert="embed",
            dtype="bfloat16",
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            gpu_memory_utilization=memory_fraction,
            max_model_len=4096,
        )

    def begin(self) -> None:
        self._llm.reset_prefix_cache()

    def end(self) -> None:
        """Nothing to put back."""

    def run(self, role: Role, sequences: Sequences) -> Rows | None:
        outputs = self._llm.embed([{"prompt_token_ids": ids.tolist()} for ids in sequences.split()], use_tqdm=False)
        rows = np.array([output.outputs.embedding for output in outputs], np.float32)
        return rows if role == "embed" else None


@contextmanager
def on_disk(body: Any, free_bytes: int) -> Iterator[Path]:
    """The model as a folder that vLLM can load, in memory (/dev/shm) where that has room. Raises NotHere where no disk has `free_bytes`."""
    places = [place for place in ("/dev/shm", tempfile.gettempdir()) if Path(place).is_dir() and shutil.disk_usage(place).free > free_bytes]
    if not places:
        raise NotHere(f"vLLM needs the weights on disk, and none has {free_bytes / 1e9:.0f} GB free")
    with tempfile.TemporaryDirectory(dir=places[0]) as folder:
        body.save_pretrained(folder)
        file = Path(folder) / "config.json"
        # The form of the published repositories, and what transformers 4 reads, which vLLM may bring.
        more = {"architectures": ["Qwen3ForCausalLM"], "rope_theta": 1e6, "torch_dtype": "bfloat16"}
        file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
        yield Path(folder)
