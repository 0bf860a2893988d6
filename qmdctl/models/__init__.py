"""How large a model is: in memory, on the disk, and its KV cache, from its own config.json."""
