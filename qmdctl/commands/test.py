"""`qmdctl test`: on a laptop, the way to the two names and back, and its first broken link."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmdctl.commands.common import JsonOption, invocation

if TYPE_CHECKING:
    from qmdctl.laptop.links import Proof
    from qmdctl.laptop.names import Names
    from qmdctl.laptop.reach import Laptop

EmbedUrlOption = Annotated[str | None, typer.Option(metavar="URL", help="Address of the embed service; else tailscale finds it.")]
GenerateUrlOption = Annotated[
    str | None, typer.Option(metavar="URL", help="Address of vLLM; else tailscale finds it, else embed's address serves both.")
]


def test(
    context: typer.Context,
    embed_url: EmbedUrlOption = None,
    generate_url: GenerateUrlOption = None,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with an API key; or set QMD_API_KEY. No option takes the key itself: `ps` would show it."),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, max=600, help="For one request.")] = 30.0,
    json_output: JsonOption = False,
) -> None:
    """Prove the way from this laptop to the stack.

    Name, port, certificate, health, an embedding, a rerank, a completion, a chat, closed ports, the path. Needs no project and no Docker.
    Exit status 1 when a link is broken; the first is named.
    """
    from qmdctl.errors import ConfigurationError
    from qmdctl.laptop.key import read_key
    from qmdctl.laptop.links import prove
    from qmdctl.laptop.names import choose_names
    from qmdctl.laptop.project import found_project
    from qmdctl.laptop.reach import Laptop, look, proxy_note
    from qmdctl.laptop.tailscale import read_tailnet

    call = invocation(context)
    terminal = call.output(json_output)
    if timeout != timeout:  # nan is neither below nor above a limit
        raise ConfigurationError("--timeout takes seconds, from 0.1 to 600", "--timeout 30")
    key = read_key(key_file)
    here = found_project(call)
    names = choose_names(embed_url, generate_url, here.hostnames)
    tailnet, without = look(read_tailnet)
    names.notes += [note for note in (proxy_note(names), here.problem) if note]
    terminal.note(f"Testing {names.embed} ({names.origins['embed']}) and {names.generation} ({names.origins['vllm']}) …", "dim")
    laptop = Laptop(tailnet, without, key, timeout, here.udp_ports)
    proof = prove(names, laptop)
    terminal.result(as_text(names, proof), payload(names, laptop, proof))
    if proof.broken:
        raise typer.Exit(1)


def payload(names: Names, laptop: Laptop, proof: Proof) -> dict[str, Any]:
    """One document with every link."""
    tailnet, broken = laptop.tailnet, proof.broken
    this = {"state": tailnet.state, "version": tailnet.version, "suffix": tailnet.suffix} if tailnet else None
    return {
        "ok": broken is None,
        "first_broken": broken.payload() if broken else None,
        "names": names.payload(),
        "tailscale": this,
        "models": proof.models,
        "embedding_fingerprint": proof.fingerprint or None,
        "notes": names.notes,
        "links": [link.payload() for link in proof.links],
    }


def as_text(names: Names, proof: Proof) -> str:
    from qmdctl.commands.health import as_text as links_as_text

    hints = [f"! {link.service}, {link.name}: {link.detail}\n  → {link.fix}" for link in proof.links if link.ok and link.fix]
    notes = [f"! {note}" for note in names.notes]
    return "\n".join([links_as_text(proof.links, proof.broken), *hints, *notes])
