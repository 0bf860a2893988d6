"""How much memory vLLM's KV cache takes, read from the metrics of the server at GENERATION_URL where that is a vLLM on this machine."""

from __future__ import annotations

import ipaddress
import time
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from embed_service.telemetry.memory import KvCache

__all__ = ["KvCacheProbe", "kv_cache_of", "on_this_machine"]

SECONDS = 2.0  # that its answer may take
EVERY_SECONDS = 15.0


class KvCacheProbe:
    """The last answer; asked again when somebody looks, at most every EVERY_SECONDS."""

    def __init__(self, url: str | None) -> None:
        self._url = url if url and on_this_machine(url) else None
        self._asked = float("-inf")
        self.last: KvCache | None = None

    @property
    def due(self) -> bool:
        return self._url is not None and time.monotonic() - self._asked >= EVERY_SECONDS

    async def ask(self) -> None:
        """Never raises: a server that does not answer, or is no vLLM, has no KV cache that we know of."""
        self._asked = time.monotonic()
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=SECONDS) as client:
                answer = await client.get(f"{self._url}/metrics")
            self.last = kv_cache_of(answer.text) if answer.status_code == 200 else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            self.last = None


def on_this_machine(url: str) -> bool:
    """A loopback address, or a name without a dot, as containers of one stack have: another machine's memory is not in our bar."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return "." not in host


def kv_cache_of(metrics: str) -> KvCache | None:
    """vLLM's `cache_config_info`, whose labels are its CacheConfig; None where `metrics` are another server's. Raises ValueError."""
    size: int | None = None
    utilization = used = None
    found = False
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name == "vllm:kv_cache_usage_perc":
                used = max(used or 0.0, sample.value)
            elif sample.name == "vllm:cache_config_info":
                found = True
                stated = sample.labels.get("kv_cache_memory_bytes", "")
                size = int(stated) if stated.isdigit() else None
                share = sample.labels.get("gpu_memory_utilization", "")
                utilization = float(share) if share.replace(".", "", 1).isdigit() else None
    return KvCache(size, utilization, used) if found else None
