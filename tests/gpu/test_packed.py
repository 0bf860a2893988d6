"""The packed path on a GPU, held to transformers' own model in float32 on each sequence alone, on every architecture and in every mode."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from tests.support.gpu import DEVICE, MODES, REHEARSAL, Mode, checkpoint_folder, device_of, need_package, random_ids

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ARCHITECTURES = {
    "qwen3-embedding": "embed", "nomic": "embed", "bge-base": "embed", "qwen3-reranker": "rerank", "qwen3-reranker-seq-cls": "rerank",
    "llama-chat": "rerank", "bge-reranker-base": "rerank", "bge-reranker-v2-m3": "rerank", "bert-cross-encoder": "rerank",
}  # fmt: skip
CAUSAL_RERANKERS = ("qwen3-reranker", "qwen3-reranker-seq-cls", "llama-chat")
LONGEST = 300 if REHEARSAL else 8_192
FLOAT32_TOLERANCE = 1e-5  # of unit vectors and probabilities
LEAST_COSINE, SCORE_TOLERANCE = 0.999, 0.02  # in bfloat16, of the wire contract
# The checkpoints' weights are drawn so wide that bfloat16 alone can take transformers' own model further than that from float32. Where it
# does, the packed path may be this many times as far away, the worst of a few dozen rows being a matter of chance.
OWN_ERROR = 3


@dataclass
class Pair:
    """A checkpoint under the packed engine, and transformers' plain model of it."""

    name: str
    mode: Mode
    spec: Any
    model: Any
    plain: Any
    coarse: Any  # the plain model in the packed one's precision

    def rows(self, sequences: Any, pack_rows: int = 64, pack_tokens: int = 16_384) -> Any:
        from embed_service.engine.packed import PackedExecutor

        executor = PackedExecutor({self.spec.role: self.model}, DEVICE, pack_rows, pack_tokens)
        result = executor.run(executor.prepare(self.spec.role, sequences))
        assert not result.failed and not result.oom_splits
        return result

    @torch.inference_mode()
    def alone(self, plain: Any, ids: NDArray[np.int32], second: int) -> NDArray[np.float32]:
        """The answer of transformers' model `plain` to one sequence: a unit vector or a probability."""
        from tests.models.reference import POOLINGS

        spec = self.spec
        inputs = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None].to(DEVICE)}
        if spec.segments:
            inputs["token_type_ids"] = (torch.arange(len(ids)) >= second).long()[None].to(DEVICE)
        if spec.kind == "embedding":
            return normalize(POOLINGS[spec.pooling](plain(**inputs).last_hidden_state).float(), dim=0).cpu().numpy()
        if spec.kind == "yes_no":
            logits = plain(**inputs, logits_to_keep=1).logits[0, -1].float()
            return (logits[spec.yes_id] - logits[spec.no_id]).sigmoid()[None].cpu().numpy()
        if spec.template_prefix:  # transformers' head for it looks for padding, of which there is none
            return plain.score(plain.model(**inputs).last_hidden_state[0, -1])[:1].float().sigmoid().cpu().numpy()
        return plain(**inputs).logits[0, :1].float().sigmoid().cpu().numpy()

    def hold(self, sequences: Any, **packs: int) -> Any:
        """Compute, and compare every row with transformers'. Returns the result."""
        result = self.rows(sequences, **packs)
        expected, coarse = (
            np.stack([self.alone(plain, ids, int(n)) for ids, n in zip(sequences.split(), sequences.second, strict=True)])
            for plain in (self.plain, self.coarse)
        )
        exact = self.mode.startswith("float32")
        if self.spec.role == "rerank":
            found = torch.from_numpy(result.rows).sigmoid().numpy()
            tolerance = FLOAT32_TOLERANCE if exact else max(SCORE_TOLERANCE, OWN_ERROR * np.abs(coarse - expected).max())
            np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)
            return result
        np.testing.assert_allclose(np.linalg.norm(result.rows, axis=1), 1, atol=1e-5)
        if exact:
            np.testing.assert_allclose(result.rows, expected, atol=FLOAT32_TOLERANCE, rtol=0)
        else:
            own = 1 - (coarse * expected).sum(1).min()
            assert 1 - (result.rows * expected).sum(1).min() <= max(1 - LEAST_COSINE, OWN_ERROR * own)
        return result


@pytest.fixture(scope="module", params=[(mode, name) for name in ARCHITECTURES for mode in MODES], ids=lambda it: f"{it[1]}, {it[0]}")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    mode, name = request.param
    need_package("pydantic_settings")
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    from embed_service.engine.loader import load_model
    from tests.models import reference
    from tests.models.engine import spec_of

    folder = checkpoint_folder(name)
    spec = spec_of(ARCHITECTURES[name], folder)  # type: ignore[arg-type]
    kinds: dict[str, Any] = {"embedding": AutoModel, "yes_no": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}
    config = {"config": reference.nomic_config(folder)} if name == "nomic" else {}
    plain = kinds[spec.kind].from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **config).to(DEVICE).eval()
    with device_of(mode) as device:
        yield Pair(name, mode, spec, load_model(spec, device), plain, copy.deepcopy(plain).to(device.dtype))


def sequences_of(pair: Pair, lengths: list[int]) -> Any:
    from embed_service.engine.sequences import Sequences

    cut = [min(n, pair.spec.max_tokens, LONGEST) for n in lengths]
    pieces = [random_ids(n, pair.spec.vocabulary, 31 * seed + n) for seed, n in enumerate(cut)]
    return Sequences.of(pieces, [max(1, n // 3) for n in cut])


def test_lengths_up_to_the_longest(pair: Pair) -> None:
    sequences = sequences_of(pair, [1, 8192, 2, 17, 300, 64, 64, 64, 2048, 5000])
    result = pair.hold(sequences)
    assert result.computed_tokens == result.padded_tokens == len(sequences.ids)


@pytest.mark.parametrize("seed", range(1 if REHEARSAL else 2))
def test_any_mixture_of_lengths_in_any_packs(pair: Pair, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lengths = [int(n) for n in np.exp(generator.uniform(0, 6.5, 24))]
    pair.hold(sequences_of(pair, lengths), pack_rows=int(generator.integers(1, 20)), pack_tokens=int(generator.choice([64, 500, 4096])))


def test_the_same_answers_when_asked_again(pair: Pair) -> None:
    """Another stream's unfinished copies would show as answers that change."""
    sequences = sequences_of(pair, [700, 3, 90, 90, 31])
    first = pair.rows(sequences).rows
    for _ in range(5):
        np.testing.assert_array_equal(pair.rows(sequences).rows, first)


def test_what_another_thread_prepares_meanwhile_arrives_whole(pair: Pair) -> None:
    """The engine's reader puts the next micro-batch on the device while this one computes."""
    batches = [sequences_of(pair, [700 - n, 3 + n, 90, 31]) for n in range(6)]
    expected = [pair.rows(batch).rows for batch in batches]
    from embed_service.engine.packed import PackedExecutor

    role = pair.spec.role
    executor = PackedExecutor({role: pair.model}, DEVICE, 64, 16_384)
    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(executor.prepare, role, batches[0])
        for number, rows in enumerate(expected):
            prepared = waiting.result()
            if number + 1 < len(batches):
                waiting = reader.submit(executor.prepare, role, batches[number + 1])
            np.testing.assert_array_equal(executor.run(prepared).rows, rows)


def test_shared_prefixes(pair: Pair) -> None:
    from embed_service.engine.sequences import Sequences

    if pair.name not in CAUSAL_RERANKERS:
        pytest.skip("only a causal reranker's sequences share prefixes")
    pieces, prefix, once = [], [], 0
    for request, (shared, owns) in enumerate([(100, [60, 800, 60, 1]), (17, [5, 400]), (1500, [30, 30])]):
        common = random_ids(shared, pair.spec.vocabulary, 1000 + request)
        once += shared + sum(owns)
        for n, own in enumerate(owns):
            pieces.append(np.concatenate([common, random_ids(own, pair.spec.vocabulary, 100 * request + n)]))
            prefix.append(shared)
    order = np.random.default_rng(0).permutation(len(pieces))
    sequences = Sequences.of([pieces[i] for i in order], prefix=[prefix[i] for i in order])
    for pack_tokens in (16_384, 500):
        result = pair.hold(sequences, pack_tokens=pack_tokens)
        assert result.computed_tokens == (once if pair.model.layout.shares_prefixes else len(sequences.ids))
    assert pair.model.layout.shares_prefixes == (REHEARSAL or "varlen" in pair.mode)
