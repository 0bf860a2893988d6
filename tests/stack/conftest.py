"""What the tests of the stack share."""

from __future__ import annotations

import pytest

from demo import smollm2

PROMPT, QUESTION, TOKENS = "The capital of France is", "What is the capital of France?", 16


@pytest.fixture(scope="session")
def expected() -> dict[str, str]:
    """transformers' own greedy text on SmolLM2's weights, in float32: {"completion": …, "chat": …}."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.prepare()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False)
    texts = {}
    for name, text in (("completion", PROMPT), ("chat", chat)):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        out = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        texts[name] = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts
