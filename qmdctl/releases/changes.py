"""What differs between two records, in words; and what laptops have to do where the space of the embeddings changed."""

from __future__ import annotations

from qmdctl.releases.record import Record

REINDEX = (
    "The embeddings' fingerprint changed: vectors that laptops have stored no longer fit. On each laptop, once:\n"
    "  qmd embed -f     makes its index again\n"
    "  qmd cleanup      drops cached rerank scores"
)


def between(before: Record | None, after: Record) -> list[str]:
    """Lines such as "vllm: nvcr.io/nvidia/vllm:25.12 → 26.01"; empty where nothing of this kind changed."""
    if not after.ready:
        return [after.note] if after.note else []
    if before is None:
        return ["the first one"]
    found = []
    if before.release != after.release:
        found.append(f"release: {before.release.text} → {after.release.text}")
    for service in dict.fromkeys([*before.images, *after.images]):
        old, new = before.images.get(service), after.images.get(service)
        if old is None or new is None:
            found.append(f"{service}: {'added' if old is None else 'gone'}")
        elif old.name != new.name:
            found.append(f"{service}: {old.name} → {new.name}{' (the same image)' if old.id == new.id else ''}")
        elif old.id != new.id:
            found.append(f"{service}: another image under the name {new.name} ({short(old.id)} → {short(new.id)})")
    for key in dict.fromkeys([*before.models, *after.models]):
        if before.models.get(key) != after.models.get(key):
            found.append(f"{key}: {before.models.get(key, 'none')} → {after.models.get(key, 'none')}")
    if fingerprint_changed(before, after):
        found.append("embeddings: another fingerprint (qmd embed -f on each laptop)")
    return found or ["settings alone"]


def fingerprint_changed(before: Record | None, after: Record) -> bool:
    """Whether both are known and differ."""
    return bool(before and before.fingerprint and after.fingerprint and before.fingerprint != after.fingerprint)


def short(image: str) -> str:
    return image.removeprefix("sha256:")[:12]
