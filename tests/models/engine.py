"""The executor on a checkpoint, fed with ids that transformers' own tokeniser made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embed_service.engine.device import Device
from embed_service.engine.executor import Executor, Result
from embed_service.engine.loader import load_fallback, load_model
from embed_service.engine.packed import PackedExecutor
from embed_service.engine.padded import PaddedExecutor
from embed_service.engine.sequences import Int32, Sequences
from embed_service.engine.sub_batches import Limits
from embed_service.models.describe import describe
from embed_service.models.spec import ModelSpec, Role
from embed_service.settings import Settings
from tests.models.reference import INSTRUCTION, PREFIX, SUFFIX, tokenizer_of

FLOAT32 = Device("cpu", torch.float32, "sdpa")
# Wide on purpose: the rectangles hold much padding, which must not show in the results.
MUCH_PADDING = Limits(rows=64, tokens=1 << 20, padding=1.0)


def spec_of(role: Role, folder: Path, **settings: Any) -> ModelSpec:
    return describe(role, str(folder), "local-test", str(folder), Settings(device="cpu", **settings), "another model")


def executor_of(spec: ModelSpec, device: Device = FLOAT32, pack_rows: int = 64, pack_tokens: int = 1 << 20) -> Executor:
    if spec.recognised:
        return PackedExecutor({spec.role: load_model(spec, device)}, "cpu", pack_rows, pack_tokens)
    return PaddedExecutor({spec.role: load_fallback(spec, device)}, "cpu", MUCH_PADDING)


def compute(executor: Executor, role: Role, sequences: Sequences) -> Result:
    return executor.run(executor.prepare(role, sequences))


def text_ids(folder: Path, texts: Sequence[str], max_tokens: int) -> list[Int32]:
    tokenizer = tokenizer_of(folder)
    return [np.array(tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"], np.int32) for text in texts]


def pair_sequences(folder: Path, query: str, documents: Sequence[str], max_tokens: int) -> Sequences:
    tokenizer = tokenizer_of(folder)
    ids, second = [], []
    for document in documents:
        pair = tokenizer(query, document, truncation="only_second", max_length=max_tokens, return_token_type_ids=True)
        ids.append(np.array(pair["input_ids"], np.int32))
        types = pair["token_type_ids"]
        second.append(types.index(1) if 1 in types else None)
    return Sequences.of(ids, second)


def judged_sequences(folder: Path, query: str, documents: Sequence[str], max_tokens: int, suffix: str = SUFFIX) -> Sequences:
    tokenizer = tokenizer_of(folder)
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in (PREFIX, suffix))
    ids = []
    for document in documents:
        body = tokenizer.encode(f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {document}", add_special_tokens=False)
        ids.append(np.array([*before, *body[: max_tokens - len(before) - len(after)], *after], np.int32))
    return Sequences.of(ids)


def unrecognised(spec: ModelSpec) -> ModelSpec:
    return dataclasses.replace(spec, recognised=False, pooling=None)
