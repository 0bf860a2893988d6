"""Which models the two addresses really serve."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from qmdctl.laptop.names import Names
    from qmdctl.settings import Settings

SECONDS = 5.0
ROLES = ("embed", "rerank", "generate")
SETTINGS = {"embed": ("EMBED_MODEL",), "rerank": ("RERANK_MODEL",), "generate": ("GENERATION_MODEL", "VLLM_MODEL")}


@dataclass(frozen=True)
class Models:
    """Names of the three models. `origins` says of each where the name is from; `key_wanted`: a server refused for want of a key."""

    embed: str
    rerank: str
    generate: str
    origins: dict[str, str] = field(default_factory=dict)
    key_wanted: bool = False

    def payload(self) -> dict[str, Any]:
        return {role: {"name": getattr(self, role), "origin": self.origins.get(role, "default")} for role in ROLES}


def served_models(names: Names, defaults: Models, settings: Settings | None = None, key: str | None = None) -> Models:
    """What the servers say; of what they do not say, the project's settings, else the defaults."""
    import httpx

    from qmdctl.laptop.dial import trust

    found = {role: (getattr(defaults, role), "default") for role in ROLES}
    for role, keys in SETTINGS.items():
        key_set = next((name for name in keys if settings is not None and settings[name]), "")
        if settings is not None and key_set:
            found[role] = (settings[key_set], f"the project's {key_set}")
    headers = {"authorization": f"Bearer {key or 'any'}"}
    secure = names.embed.startswith("https://") or names.generation.startswith("https://")
    with httpx.Client(trust_env=False, verify=trust() if secure else False, headers=headers) as client:
        told = _get(client, f"{names.embed}/health").get("models")
        for role in ("embed", "rerank"):
            if isinstance(told, dict) and _is_name(told.get(role)):
                found[role] = (told[role], "served")
        generate, wanted = _generating(client, names, (found["embed"][0], found["rerank"][0]))
    if generate:
        found["generate"] = (generate, "served")
    models = replace(defaults, origins={role: origin for role, (_, origin) in found.items()}, key_wanted=wanted)
    return replace(models, **{role: name for role, (name, _) in found.items()})


def _generating(client: httpx.Client, names: Names, others: tuple[str, ...]) -> tuple[str, bool]:
    """(the model that generates text, or nothing; whether a key was wanted).

    vLLM lists its model first, then aliases. The embed service, where it forwards generation, lists after its `others` what it forwards to.
    """
    listed = _get(client, f"{names.generation}/v1/models")
    data = listed.get("data")
    entries = [one for one in (data if isinstance(data, list) else []) if isinstance(one, dict) and _is_name(one.get("id"))]
    if any(one["id"] in others for one in entries):
        entries = [one for one in entries if one.get("root") == one["id"] and one["id"] not in others]
    return (entries[0]["id"] if entries else ""), listed.get("status") == 401


def _is_name(told: object) -> bool:
    """Whether a server told a name: one with a line feed or another control character is none."""
    return isinstance(told, str) and bool(told) and told.isprintable()


def _get(client: httpx.Client, url: str) -> dict[str, Any]:
    """The JSON object that is answered, also where it is an error; {"status": 401} for want of a key, empty where nothing fits."""
    import httpx

    from qmdctl.exchange import exchange

    try:
        answer = exchange(client, "GET", url, SECONDS)
        data = {"status": 401} if answer.status_code == 401 else answer.json()
    except (httpx.HTTPError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
