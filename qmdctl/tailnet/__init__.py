"""The sidecars that make each service a node of the tailnet: what is read inside them, and what it means."""

from __future__ import annotations

# The sidecar's compose service, and the service that it stands before.
SIDECARS = {"ts-embed": "embed", "ts-vllm": "vllm"}
HOSTNAME_KEYS = {"ts-embed": "EMBED_HOSTNAME", "ts-vllm": "VLLM_HOSTNAME"}
UDP_PORT_KEYS = {"ts-embed": "EMBED_UDP_PORT", "ts-vllm": "VLLM_UDP_PORT"}
