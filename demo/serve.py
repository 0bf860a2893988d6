"""`make serve`: the service alone on loopback until Ctrl-C, on MiniLM unless EMBED_MODEL and RERANK_MODEL say otherwise."""

from __future__ import annotations

import os
import sys

from demo.processes import minilm

DEFAULTS = {"DEVICE": "auto", "HOST": "127.0.0.1", "PORT": "8001", "LOG_FORMAT": "console"}


def environment() -> dict[str, str]:
    """The process's own, filled up with the small models and loopback. Without RERANK_MODEL it is reranked by cosine."""
    chosen = {name: value for name, value in os.environ.items() if value}
    for name, value in DEFAULTS.items():
        chosen.setdefault(name, value)
    if "EMBED_MODEL" not in chosen:
        chosen["EMBED_MODEL"] = minilm()
    chosen.setdefault("RERANK_MODEL", chosen["EMBED_MODEL"])
    return chosen


def main() -> None:
    chosen = environment()
    host = f"[{chosen['HOST']}]" if ":" in chosen["HOST"] else chosen["HOST"]
    url = f"http://{host}:{chosen['PORT']}"
    by = "cosine" if chosen["RERANK_MODEL"] == chosen["EMBED_MODEL"] else chosen["RERANK_MODEL"]
    text = f"""{url}   embedding: {chosen["EMBED_MODEL"]}   reranking: {by}
Ready when  curl -s {url}/health  says "ok"; then try

  curl -s {url}/v1/embeddings -H 'Content-Type: application/json' -d '{{"input": ["a note", "another note"]}}'
  curl -s {url}/v1/rerank -H 'Content-Type: application/json' -d '{{"query": "fruit", "documents": ["a car", "an apple"]}}'

Ctrl-C stops it.
"""
    print(text, flush=True)
    os.execvpe(sys.executable, [sys.executable, "-m", "embed_service", "serve"], chosen)


if __name__ == "__main__":
    main()
