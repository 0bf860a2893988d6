"""What `qmdctl test --check-index` says."""

from __future__ import annotations

from typing import Any

from qmdctl.index.compare import ON_LAPTOP, Step, Verdict
from qmdctl.index.database import Index

CLEANUP = Step(ON_LAPTOP, "qmd cleanup", "empties the client's whole cache of answers; notes and vectors stay")


def healthy(index: Index, verdict: Verdict) -> bool:
    """Whether nothing has to be mended. An index without any vector is not broken, it is new."""
    return not index.zero_scores and (verdict.kind == "same" or not index.vectors)


def steps(index: Index, verdict: Verdict) -> list[Step]:
    return [*verdict.steps, *([CLEANUP] if index.zero_scores else [])]


def payload(index: Index, url: str, verdict: Verdict) -> dict[str, Any]:
    """One document: the verdict, what it rests on, and the steps."""
    return {
        "ok": healthy(index, verdict),
        "verdict": verdict.kind,
        "sentence": verdict.sentence,
        "steps": [{"where": step.where, "command": step.command, "effect": step.effect} for step in steps(index, verdict)],
        "index": {
            "path": str(index.path),
            "documents": index.documents,
            "vectors": index.vectors,
            "dimensions": index.dimensions or None,
            "models": index.models,
            "read_by": "sqlite-vec" if index.extension else "its tables",
        },
        "server": {
            "url": url,
            "model": verdict.model or None,
            "prompt_policy": verdict.policy or None,
            "fingerprint": verdict.fingerprint or None,
            "dimensions": verdict.dimensions,
        },
        "compared": [
            {"document": one.chunk.path, "form": one.form.name, "cosine": round(one.cosine, 6), "state": one.state(verdict.policy)}
            for one in verdict.matches
        ],
        "cached_rerank_scores": {"all": index.scores, "zero": index.zero_scores},
    }


def as_text(index: Index, url: str, verdict: Verdict) -> str:
    names = ", ".join(repr(name) for name in index.models)
    vectors = f"{index.vectors} vectors of {index.dimensions} numbers" if index.dimensions else "no vectors"
    stored = f"{vectors} for {index.documents} documents" + (f", stored under the name {names}" if names else "")
    policy = f", prompt policy {verdict.policy}" if verdict.policy else ""
    lines = [
        f"index   {index.path}: {stored}",
        f"server  {url}: {verdict.model or 'model not told'}, {verdict.dimensions} numbers{policy}",
    ]
    if verdict.matches:
        cosines = [one.cosine for one in verdict.matches]
        forms = "; ".join(dict.fromkeys(one.form.shown for one in verdict.matches))
        lines.append(f"compared  {len(cosines)} stored vectors, cosine {min(cosines):.4f} to {max(cosines):.4f} (nearest form: {forms})")
    lines.append(f"cache   {index.scores} rerank scores, {index.zero_scores} of them zeros of a call that failed")
    lines.append(f"{'✓' if verdict.kind == 'same' else '-' if not index.vectors else '✗'} {verdict.sentence}")
    lines += [f"  → {step}" for step in verdict.steps]
    if index.zero_scores:
        lines += [
            f"✗ {index.zero_scores} rerank scores of zero are kept from a rerank that failed: these searches stay in a bad order.",
            f"  → {CLEANUP}",
        ]
    return "\n".join(lines)
