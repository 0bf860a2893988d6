"""Real tokenisers, and one of XLM-R's kind, written as a repository has them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.service import minilm_path

# How Qwen's tokeniser splits text before the merges (tokenizer.json of Qwen3).
QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Ids 151643 … 151656, then 151657 … 151668 which are not "special".
QWEN_SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
    "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
QWEN_ADDED = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
    "<tool_response>", "</tool_response>", "<think>", "</think>",
]  # fmt: skip


def qwen_tokenizer(folder: Path) -> None:
    """Qwen3's true tokeniser, from the vocabulary in the package `dashscope`: "yes" 9693, "no" 2152, <|endoftext|> 151643."""
    from tokenizers import AddedToken, normalizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    spec = importlib.util.find_spec("dashscope")
    assert spec is not None and spec.submodule_search_locations, "the package dashscope, which carries Qwen's vocabulary, is not installed"
    vocabulary = Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    converter: Any = TikTokenConverter  # it has no types
    tokenizer = converter(vocab_file=str(vocabulary), pattern=QWEN_SPLIT, extra_special_tokens=QWEN_SPECIAL).converted()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in QWEN_ADDED])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=131_072,
        clean_up_tokenization_spaces=False,
    )


def append_endoftext(folder: Path) -> None:
    """What sets Qwen3-Embedding's tokenizer.json apart: its post-processor appends <|endoftext|>, though eos_token is <|im_end|>."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = processors.TemplateProcessing(
        single="$A <|endoftext|>", pair="$A <|endoftext|> $B <|endoftext|>", special_tokens=[("<|endoftext|>", 151_643)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(add_prefix_space=False, use_regex=False), end])
    tokenizer.save(str(folder / "tokenizer.json"))


def bert_tokenizer(folder: Path) -> None:
    """bert-base-uncased's true vocabulary, which MiniLM, bge-base and nomic share."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(Path(minilm_path()) / name, folder / name)


def xlm_roberta_tokenizer(folder: Path) -> None:
    """XLM-R's kind of tokeniser (Unigram, "<s> A </s></s> B </s>"), trained on the Python standard library's own text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=4_000, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_library_text(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=512,
    )


def _library_text() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:30]:
        yield file.read_text(errors="ignore")


def write_json(file: Path, **content: Any) -> None:
    file.write_text(json.dumps(content, indent=1))
