"""The QMD embed service: OpenAI embeddings and Cohere-style rerank over HTTP."""

__version__ = "0.1.0"
