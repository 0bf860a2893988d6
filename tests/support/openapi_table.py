"""What the OpenAPI document must say: every field and status that the wire contract names, by path."""

from __future__ import annotations

from dataclasses import dataclass, field

ERRORS = frozenset({"400", "401", "403", "404", "405", "413", "415", "500", "503"})
READ_ERRORS = frozenset({"401", "403", "405"})


@dataclass(frozen=True)
class Operation:
    request: frozenset[str] = frozenset()
    answer: frozenset[str] = frozenset()
    statuses: frozenset[str] = field(default=ERRORS - {"404"} | {"200"})
    items: tuple[str, frozenset[str]] = ("", frozenset())  # the list inside the answer, and the fields of one item
    headers: frozenset[str] = frozenset()


COMPUTE_HEADERS = frozenset({"x-request-id", "x-model", "x-embedding-fingerprint", "x-truncated-inputs", "server-timing"})

RERANK = Operation(
    request=frozenset(
        {"query", "documents", "texts", "model", "top_n", "top_k", "return_documents", "instruction", "max_tokens_per_doc", "raw_scores"}
    ),
    answer=frozenset({"id", "object", "model", "results", "usage", "meta"}),
    items=("results", frozenset({"index", "relevance_score", "score", "document"})),
    headers=COMPUTE_HEADERS,
)
READ = Operation(statuses=READ_ERRORS - {"405"} | {"200"})

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("/v1/embeddings", "post"): Operation(
        request=frozenset(
            {
                "input",
                "model",
                "encoding_format",
                "dimensions",
                "input_type",
                "prompt_name",
                "instruction",
                "truncate_prompt_tokens",
                "truncate",
            }
        ),
        answer=frozenset({"object", "model", "data", "usage"}),
        items=("data", frozenset({"object", "index", "embedding"})),
        headers=COMPUTE_HEADERS,
    ),
    **{(path, "post"): RERANK for path in ("/v1/rerank", "/rerank", "/v2/rerank", "/v1/reranks", "/reranks", "/v1/re-rank")},
    **{
        (path, "post"): Operation(
            request=frozenset({"text_1", "text_2", "queries", "documents", "model"}),
            answer=frozenset({"id", "object", "model", "data", "usage"}),
            items=("data", frozenset({"index", "object", "score"})),
        )
        for path in ("/v1/score", "/score")
    },
    ("/tokenize", "post"): Operation(request=frozenset({"input", "text", "prompt", "model"}), answer=frozenset({"tokens", "count"})),
    ("/detokenize", "post"): Operation(request=frozenset({"tokens", "model"}), answer=frozenset({"prompt"})),
    ("/v1/models", "get"): Operation(
        answer=frozenset({"object", "data"}), statuses=READ.statuses, items=("data", frozenset({"id", "object", "created", "owned_by"}))
    ),
    ("/health", "get"): Operation(
        answer=frozenset(
            {
                "status",
                "models",
                "device",
                "cuda_available",
                "phase",
                "fingerprint",
                "prompt_policy",
                "version",
                "uptime_seconds",
                "engine",
                "error",
            }
        ),
        statuses=frozenset({"200", "503"}),
    ),
    ("/livez", "get"): Operation(statuses=frozenset({"200"})),
    ("/version", "get"): Operation(answer=frozenset({"version"}), statuses=READ.statuses),
    ("/metrics", "get"): READ,
    ("/stats", "get"): Operation(
        answer=frozenset(
            {"health", "started_at", "ready_since", "models", "generation", "now", "search_seconds", "memory", "window", "samples"}
        ),
        statuses=READ.statuses | {"400", "421"},
        items=("samples", frozenset({"id", "time", "texts_per_second", "tokens_per_second", "search_p50", "search_p95", "queued_tokens"})),
    ),
    ("/docs", "get"): Operation(statuses=frozenset({"200", "403", "421"})),
    ("/v1/completions", "post"): Operation(statuses=frozenset({"200", "400", "401", "403", "404", "413", "415", "503"})),
    ("/v1/chat/completions", "post"): Operation(statuses=frozenset({"200", "400", "401", "403", "404", "413", "415", "503"})),
}
