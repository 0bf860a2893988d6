"""How a node is reached: hops, and whether directly."""

from __future__ import annotations

from collections.abc import Callable

from qmdctl.laptop.tailscale import Node, Pong, Tailnet, ping

UDP_PORTS = {"embed": "41651", "vllm": "41652"}


Ping = Callable[[Tailnet, str], Pong | None]


def path_to(tailnet: Tailnet, node: Node, udp_port: str, probe: Ping = ping) -> tuple[str, str]:
    """(`1 hop, direct …`, the fix where it could be shorter). Where no ping comes back, what tailscale knew of the path already."""
    if node.this_machine:
        return "0 hops: the node is this machine", ""
    pong = probe(tailnet, node.addresses[0]) if node.addresses else None
    if pong is None:
        pong = Pong(node.direct, "" if node.direct or node.peer_relay else node.relay, node.peer_relay, "but no ping came back")
    if pong.direct:
        return f"1 hop, direct {pong.direct}, {pong.time}", ""
    if not pong.relay and not pong.peer_relay:
        return "not known: no ping came back", ""
    fix = f"slower than need be; open UDP {udp_port} to the GPU box in its firewall or router, then: tailscale ping {node.name}"
    by = f"the peer relay {pong.peer_relay}" if pong.peer_relay else f"the relay {pong.relay}"
    return f"2 hops, through {by}, {pong.time}", fix
