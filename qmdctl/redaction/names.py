"""What is called a secret: the one rule of names, for .env, options of programs, fields and texts."""

from __future__ import annotations

import re

# A key whose value is a secret: HF_TOKEN, --api-key, "apiKey", private_key; not MAX_BATCH_TOKENS, KeyExpiry or API_KEYS_FILE.
# Repetitions are bounded, here and in shapes.py: a line of a megabyte must not take a quadratic time.
NAME = (
    r"[\w.-]{0,80}(?:token|secret|password|passwd|passphrase|credentials?|cookie|authorization|authurl|bearer|webhook(?:[_-]?url)?"
    r"|(?:[_-]|\bpg)pass|(?:[_-]|\b)(?:pwd|dsn)|[_-]auth|(?:api|auth|access|private|secret|[_-])[_-]?keys?(?:[_-]id)?)"
    r"(?:[_-]?\d{1,3}|[_-](?:old|new|backup|previous))?"
)
_WHOLE = re.compile(NAME, re.IGNORECASE)

# --api-key, --hf-token, --ssl-key-password, tailscale's --authkey; not --tokenizer, --max-num-batched-tokens or --ssl-keyfile.
OPTION = r"--(?:[\w-]{0,60}[-_])?(?:(?:auth)?key|token|secret|password)"
_WHOLE_OPTION = re.compile(OPTION)


def secret_name(name: str) -> bool:
    """Whether what has this name (a variable, an option, a field) is a secret itself, not the place of one."""
    return _WHOLE.fullmatch(name.lstrip("-")) is not None


def secret_option(word: str) -> bool:
    """Whether the words after this one, of a command line, are secrets up to the next option."""
    return _WHOLE_OPTION.fullmatch(word) is not None
