"""The JSON files of a model's repository on disk, in the spellings that have been in use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from embed_service.errors import ModelError
from embed_service.models.spec import Pooling

Json = dict[str, Any]
# sentence-transformers' names for poolings that the engine computes itself.
POOLINGS: dict[str, Pooling] = {"lasttoken": "last", "cls": "cls", "mean": "mean"}
OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Repository:
    """Reads one repository. `name` is how errors call it: "EMBED_MODEL=Qwen/Qwen3-Embedding-4B"."""

    def __init__(self, path: str | Path, name: str) -> None:
        self.path = Path(path)
        self.name = name
        self.config = self.json("config.json")
        if not self.config:
            raise ModelError("bad_files", f"{name}: {self.path} has no config.json, so it is not a transformers model. Choose another.")
        self.sentence_transformers = self.json("config_sentence_transformers.json")
        modules = self.json("modules.json", list)
        self.modules: list[Json] = sorted(modules, key=lambda m: int(m.get("idx", 0))) if isinstance(modules, list) else []

    def json(self, relative: str, kind: type = dict) -> Any:
        """The file's object, or an empty one where there is no such file. Raises ModelError (bad_files)."""
        file = self.path / relative
        if not file.is_file():
            return kind()
        try:
            value = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(relative, str(error)) from None
        if not isinstance(value, kind):
            raise self._damaged(relative, f"not a JSON {kind.__name__}")
        return value

    @property
    def architecture(self) -> str:
        """The class that the weights were saved from: "Qwen3ForCausalLM"; empty where the repository does not say."""
        names = self.config.get("architectures") or [""]
        return str(names[0])

    @property
    def module_types(self) -> list[str]:
        """Last parts of the types in modules.json: ["Transformer", "Pooling", "Normalize"]."""
        return [str(module.get("type", "")).rpartition(".")[2] for module in self.modules]

    @property
    def is_embedding_model(self) -> bool:
        return "Pooling" in self.module_types

    @property
    def is_cross_encoder(self) -> bool:
        return self.sentence_transformers.get("model_type") == "CrossEncoder" or "LogitScore" in self.module_types

    def module_config(self, kind: str) -> Json:
        """config.json of the last module of this type, empty where there is none."""
        found: Json = {}
        for module, name in zip(self.modules, self.module_types, strict=True):
            if name == kind:
                found = self.json(f"{module.get('path', '')}/config.json".lstrip("/"))
        return found

    def pooling_modes(self) -> list[str]:
        """sentence-transformers' names of the poolings in force; empty where the repository names none."""
        config = self.module_config("Pooling")
        modes = config.get("pooling_mode")
        if modes is None:
            return [name for key, name in OLD_POOLINGS.items() if config.get(key)]
        return [modes] if isinstance(modes, str) else list(modes)

    def sequence_limits(self) -> list[int]:
        """Lengths that the repository's own files allow, in tokens with special ones."""
        transformer = self.json("sentence_bert_config.json")
        limits = [
            transformer.get("max_seq_length"),
            (transformer.get("processor_kwargs") or {}).get("model_max_length"),
            self.json("tokenizer_config.json").get("model_max_length"),
        ]
        # Tokenisers without a limit carry 10**30.
        return [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit <= 10_000_000]

    def labels(self) -> int:
        """Outputs of a sequence-classification head (transformers' default is two)."""
        if isinstance(labels := self.config.get("id2label"), dict):
            return len(labels)
        return int(self.config.get("num_labels", 2))

    def tokenizer(self) -> Tokenizer:
        """The tokeniser of tokenizer.json. Raises ModelError (bad_files)."""
        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise ModelError(
                "bad_files",
                f"{self.name} has no tokenizer.json. Choose a revision that has one, or make it: "
                "AutoTokenizer.from_pretrained(…).save_pretrained(folder).",
            )
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise self._damaged("tokenizer.json", str(error)) from None

    def require_safetensors(self) -> None:
        """Raises ModelError (no_safetensors)."""
        if any(self.path.glob("*.safetensors")):
            return
        pickles = [file.name for pattern in ("*.bin", "*.pt", "*.ckpt") for file in self.path.glob(pattern)]
        has = f"only pickled weights ({pickles[0]}), which can run code when they are loaded" if pickles else "no *.safetensors weights"
        raise ModelError(
            "no_safetensors",
            f"{self.name} has {has}. Choose a model or a revision with *.safetensors (many hub models have one as refs/pr/…).",
        )

    def unsupported(self, what: str) -> ModelError:
        """To be raised: "EMBED_MODEL=… {what}"."""
        return ModelError("unsupported", f"{self.name} {what}")

    def _damaged(self, relative: str, reason: str) -> ModelError:
        return ModelError("bad_files", f"{self.name}: {relative} cannot be read ({reason}). Delete {self.path} and start again.")
