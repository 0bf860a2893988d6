"""Small models of the true architectures in the layout of their true repositories: seeded random weights, real tokenisers.

They are made once and kept under .cache/, keyed by the two files that make them and by library versions. Weights are drawn wider
than an architecture's default, so that different texts get clearly different answers and a wrong pooling, template or mask shows.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import tokenizer_files
from tests.support.service import ROOT
from tests.support.tokenizer_files import append_endoftext, bert_tokenizer, qwen_tokenizer, write_json, xlm_roberta_tokenizer

HIDDEN, LAYERS, HEADS = 64, 3, 4
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def checkpoint(name: str) -> Path:
    """The folder of a checkpoint or tokeniser of `MAKERS`, made if it is not there."""
    versions = [importlib.metadata.version(package) for package in ("torch", "transformers", "tokenizers")]
    sources = b"".join(Path(str(file)).read_bytes() for file in (__file__, tokenizer_files.__file__))
    key = hashlib.sha256(sources + repr(versions).encode()).hexdigest()[:12]
    folder = ROOT / ".cache" / "checkpoints" / key / name
    if not folder.is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
        unfinished = folder.with_name(f"{name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        MAKERS[name](unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(unfinished)
    return folder


def qwen3_embedding(folder: Path) -> None:
    """Qwen/Qwen3-Embedding-0.6B: weights of the bare model (no "model." before the names) under a config that says ForCausalLM."""
    import torch
    from transformers import Qwen3Model

    _copy("qwen-tokenizer", folder)
    append_endoftext(folder)
    torch.manual_seed(1)
    _save(_vary(Qwen3Model(_decoder_config("Qwen3Config"))), folder, torch.bfloat16, architectures=["Qwen3ForCausalLM"])
    _sentence_transformers(folder, "lasttoken", {"query": f"Instruct: {TASK}\nQuery:", "document": ""})


def qwen3_reranker(folder: Path) -> None:
    """Qwen/Qwen3-Reranker-0.6B: a causal language model with tied embeddings, so the file has no lm_head."""
    import torch
    from transformers import Qwen3ForCausalLM

    _copy("qwen-tokenizer", folder)
    torch.manual_seed(2)
    _save(_vary(Qwen3ForCausalLM(_decoder_config("Qwen3Config"))), folder, torch.bfloat16)


def qwen3_reranker_seq_cls(folder: Path) -> None:
    """The same reranker turned into a classifier with one label: its head is W[yes] − W[no]."""
    import torch
    from transformers import Qwen3ForCausalLM, Qwen3ForSequenceClassification

    _copy("qwen-tokenizer", folder)
    causal = Qwen3ForCausalLM.from_pretrained(checkpoint("qwen3-reranker"), dtype=torch.float32)
    classifier = Qwen3ForSequenceClassification(_decoder_config("Qwen3Config", num_labels=1))
    classifier.model.load_state_dict(causal.model.state_dict())
    classifier.score.weight.data = (causal.lm_head.weight[9693] - causal.lm_head.weight[2152]).detach()[None]
    _save(classifier, folder, torch.float32)


# The end of Qwen3's own template: thinking is on unless a request turns it off.
QWEN3_CHAT_TEMPLATE = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def qwen3_chat(folder: Path) -> None:
    """Qwen/Qwen3-0.6B: a language model with Qwen3's chat template, in a size whose heads vLLM's kernels for CPUs take."""
    import torch
    from transformers import Qwen3ForCausalLM

    _copy("qwen-tokenizer", folder)
    torch.manual_seed(4)
    _save(
        Qwen3ForCausalLM(_decoder_config("Qwen3Config", head_dim=32)),
        folder,
        torch.bfloat16,
        # What transformers 4 reads, which vLLM 0.12 brings; 5 writes neither.
        rope_theta=1e6,
        torch_dtype="bfloat16",
    )
    write_json(
        folder / "tokenizer_config.json",
        **{**json.loads((folder / "tokenizer_config.json").read_text()), "tokenizer_class": "PreTrainedTokenizerFast"},
    )
    (folder / "chat_template.jinja").write_text(QWEN3_CHAT_TEMPLATE)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which another user's container cannot read


def llama_chat(folder: Path) -> None:
    """HuggingFaceTB/SmolLM2-135M-Instruct's architecture, with a tokeniser that knows <|im_start|>."""
    import torch
    from transformers import LlamaForCausalLM

    _copy("qwen-tokenizer", folder)
    torch.manual_seed(3)
    _save(_vary(LlamaForCausalLM(_decoder_config("LlamaConfig"))), folder, torch.bfloat16)


def nomic(folder: Path) -> None:
    """nomic-ai/nomic-embed-text-v1.5: its remote code's names in weights and config, 8,192 positions, vocabulary padded to 30,528."""
    import torch
    from transformers import NomicBertConfig, NomicBertModel

    bert_tokenizer(folder)
    torch.manual_seed(4)
    config = NomicBertConfig(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=2 * HIDDEN, initializer_range=0.3
    )
    _save(_vary(NomicBertModel(config)), folder, torch.float32)  # transformers writes this architecture's old names
    (folder / "config.json").write_text(json.dumps(NOMIC_CONFIG))
    write_json(folder / "tokenizer_config.json", **{**json.loads((folder / "tokenizer_config.json").read_text()), "model_max_length": 8192})
    _sentence_transformers(folder, "mean", {}, normalize=False, max_seq_length=8192)


NOMIC_CONFIG = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "attn_pdrop": 0.0,
    "auto_map": {"AutoConfig": "configuration_hf_nomic_bert.NomicBertConfig", "AutoModel": "modeling_hf_nomic_bert.NomicBertModel"},
    "causal": False,
    "layer_norm_epsilon": 1e-12,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "model_type": "nomic_bert",
    "n_embd": HIDDEN,
    "n_head": HEADS,
    "n_inner": 2 * HIDDEN,
    "n_layer": LAYERS,
    "n_positions": 8192,
    "parallel_block": False,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
    "type_vocab_size": 2,
    "use_rms_norm": False,
    "vocab_size": 30528,
}


def bge_base(folder: Path) -> None:
    """BAAI/bge-base-en-v1.5: BERT, CLS pooling."""
    import torch
    from transformers import BertModel

    bert_tokenizer(folder)
    torch.manual_seed(5)
    _save(_vary(BertModel(_encoder_config("BertConfig"))), folder, torch.float32)
    _sentence_transformers(folder, "cls", {}, max_seq_length=512)


def distilbert(folder: Path) -> None:
    """sentence-transformers/multi-qa-distilbert-cos-v1: an architecture that has no row of its own."""
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    bert_tokenizer(folder)
    torch.manual_seed(9)
    config = DistilBertConfig(dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=2 * HIDDEN, initializer_range=0.15)
    _save(_vary(DistilBertModel(config)), folder, torch.float32)
    _sentence_transformers(folder, "mean", {}, max_seq_length=512)


def bert_cross_encoder(folder: Path) -> None:
    """cross-encoder/ms-marco-MiniLM-L6-v2: BERT with token types for the two texts of a pair."""
    import torch
    from transformers import BertForSequenceClassification

    bert_tokenizer(folder)
    torch.manual_seed(6)
    _save(_vary(BertForSequenceClassification(_encoder_config("BertConfig", num_labels=1))), folder, torch.float32)


def bge_reranker_base(folder: Path) -> None:
    """BAAI/bge-reranker-base: XLM-R with 514 positions, of which 512 take tokens."""
    _bge_reranker(folder, 7, positions=514)


def bge_reranker_v2_m3(folder: Path) -> None:
    """BAAI/bge-reranker-v2-m3: the same with 8,194 positions."""
    _bge_reranker(folder, 8, positions=8_194)
    write_json(folder / "tokenizer_config.json", **{**json.loads((folder / "tokenizer_config.json").read_text()), "model_max_length": 8192})


def _bge_reranker(folder: Path, seed: int, positions: int) -> None:
    import torch
    from tokenizers import Tokenizer
    from transformers import XLMRobertaForSequenceClassification

    _copy("xlm-roberta-tokenizer", folder)
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    torch.manual_seed(seed)
    config = _encoder_config(
        "XLMRobertaConfig",
        vocab_size=size,
        max_position_embeddings=positions,
        type_vocab_size=1,
        num_labels=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        layer_norm_eps=1e-5,
    )
    _save(_vary(XLMRobertaForSequenceClassification(config)), folder, torch.float32)


MAKERS: dict[str, Callable[[Path], None]] = {
    "qwen-tokenizer": qwen_tokenizer,
    "xlm-roberta-tokenizer": xlm_roberta_tokenizer,
    "qwen3-embedding": qwen3_embedding,
    "qwen3-reranker": qwen3_reranker,
    "qwen3-reranker-seq-cls": qwen3_reranker_seq_cls,
    "qwen3-chat": qwen3_chat,
    "llama-chat": llama_chat,
    "nomic": nomic,
    "bge-base": bge_base,
    "distilbert": distilbert,
    "bert-cross-encoder": bert_cross_encoder,
    "bge-reranker-base": bge_reranker_base,
    "bge-reranker-v2-m3": bge_reranker_v2_m3,
}


# Writing


def _copy(name: str, folder: Path) -> None:
    for file in checkpoint(name).iterdir():
        shutil.copyfile(file, folder / file.name)


def _decoder_config(kind: str, **more: Any) -> Any:
    import transformers

    fields = {
        "vocab_size": 151_669,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "initializer_range": 0.15,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
        **more,
    }
    return getattr(transformers, kind)(**fields)


def _encoder_config(kind: str, **more: Any) -> Any:
    import transformers

    fields = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * HIDDEN,
        "initializer_range": 0.4,
        **more,
    }
    return getattr(transformers, kind)(**fields)


def _vary(model: Any) -> Any:
    """Norms and biases too, which are ones and zeros at first: a lost one would not show."""
    import torch

    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def _save(model: Any, folder: Path, dtype: Any, **config: Any) -> None:
    """Weights in `dtype`, then these fields over those of the config.json that transformers wrote."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.to(dtype).save_pretrained(folder)
    write_json(folder / "config.json", **{**json.loads((folder / "config.json").read_text()), **config})


def _sentence_transformers(folder: Path, pooling: str, prompts: dict[str, str], normalize: bool = True, max_seq_length: int = 0) -> None:
    """The files that make a folder a sentence-transformers repository, in the spelling of the published ones."""
    modes = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken", "max": "max_tokens"}
    flags = {f"pooling_mode_{spelling}": mode == pooling for mode, spelling in modes.items()}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", word_embedding_dimension=HIDDEN, **flags)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"} for n, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    write_json(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=None, similarity_fn_name="cosine")
    if max_seq_length:
        write_json(folder / "sentence_bert_config.json", max_seq_length=max_seq_length, do_lower_case=False)
