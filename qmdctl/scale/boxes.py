"""Two boxes on one cable: their addresses there, the interface, and how vLLM's ranks find each other."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from qmdctl.errors import ConfigurationError

Way = Literal["nnodes", "ray"]
Role = Literal["head", "worker"]
ROLES: tuple[Role, ...] = ("head", "worker")
PREFIX = 24  # of the network on the cable
TAILNET = ipaddress.ip_network("100.64.0.0/10")
PRIVATE = tuple(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"))
INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")  # Linux: 15 characters
HCA = re.compile(r"[A-Za-z0-9_]+(,[A-Za-z0-9_]+)*")
API_PORT = 8000
MASTER_PORT = 29501  # vLLM's own default
RAY_PORT = 6379


@dataclass(frozen=True)
class Boxes:
    """Addresses are IPv4 on the cable. `worker_interface`: where the worker's has another name; `hca`: RoCE devices, else NCCL's choice."""

    head: str
    worker: str
    interface: str
    way: Way = "nnodes"
    worker_interface: str = ""
    hca: str = ""

    def address(self, role: Role) -> str:
        return self.head if role == "head" else self.worker

    def interface_of(self, role: Role) -> str:
        return (self.worker_interface or self.interface) if role == "worker" else self.interface


def make_boxes(head: str, worker: str, interface: str, way: str, worker_interface: str = "", hca: str = "") -> Boxes:
    """ConfigurationError, which names the option and what it takes, for what cannot be."""
    addresses = {option: _address(option, text) for option, text in (("--head", head), ("--worker", worker))}
    if addresses["--head"] == addresses["--worker"]:
        raise ConfigurationError(f"--worker: {worker} is the head's address too", "two boxes have two addresses: --worker 192.168.100.11")
    network = ipaddress.ip_network(f"{addresses['--head']}/{PREFIX}", strict=False)
    if addresses["--worker"] not in network:
        raise ConfigurationError(
            f"--worker: {worker} is not in the head's network {network}",
            "both ends of one cable are in one network: 192.168.100.10 and .11",
        )
    for option, name in (("--interface", interface), ("--worker-interface", worker_interface or interface)):
        if not INTERFACE.fullmatch(name):
            raise ConfigurationError(
                f"{option}: {name!r} is no name of an interface", f"{option} enp1s0f1np1 (ibdev2netdev shows it as Up)"
            )
        if re.match(r"lo$|docker|br-|veth|tailscale", name):
            raise ConfigurationError(
                f"{option}: {name} is not the cable between the boxes", f"{option} enp1s0f1np1 (ibdev2netdev shows it as Up)"
            )
    if hca and not HCA.fullmatch(hca):
        raise ConfigurationError(f"--hca: {hca!r} is no list of RoCE devices", "--hca rocep1s0f1,roceP2p1s0f1 (ibdev2netdev lists them)")
    if way not in ("nnodes", "ray"):
        raise ConfigurationError(f"--way: {way!r} is not known", "--way nnodes (vLLM alone) or --way ray")
    return Boxes(
        str(addresses["--head"]), str(addresses["--worker"]), interface, "ray" if way == "ray" else "nnodes", worker_interface, hca
    )


def _address(option: str, text: str) -> ipaddress.IPv4Address:
    example = f"{option} 192.168.100.10: the box's address on the cable between them"
    try:
        address = ipaddress.IPv4Address(text.strip())
    except ValueError:
        raise ConfigurationError(f"{option}: {text!r} is no IPv4 address", example) from None
    if address in TAILNET:
        raise ConfigurationError(
            f"{option}: {address} is of the tailnet: tensor parallelism exchanges each layer's output over it", example
        )
    if not any(address in network for network in PRIVATE):
        raise ConfigurationError(
            f"{option}: {address} is not private: what vLLM's ranks exchange has neither a key nor encryption", example
        )
    return address
