"""The command line of `embed-service control`. Imports next to nothing: `serve` has the same parser, and binds its port right after it."""

from __future__ import annotations

from argparse import ArgumentParser

__all__ = ["add_arguments"]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("pause", "resume", "status", "switch"))
    parser.add_argument("--embed-model", metavar="ID", help="switch: the embedding model, a Hugging Face id or a folder")
    parser.add_argument("--embed-revision", metavar="REV", help="switch: its branch, tag or commit")
    parser.add_argument("--rerank-model", metavar="ID", help="switch: the reranker; the embedding model's id reranks by cosine")
    parser.add_argument("--rerank-revision", metavar="REV", help="switch: its branch, tag or commit")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="most that a pause waits for requests in flight, a resume for the models, a switch for both (1800)",
    )
    parser.add_argument(
        "--attended", action="store_true", help="end when stdin is closed: a `docker exec -i` that is interrupted leaves nothing behind"
    )
