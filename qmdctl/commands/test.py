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
    from qmdctl.terminal import Terminal

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
    check_index: Annotated[
        bool, typer.Option("--check-index", help="Instead: whether the local QMD index and the server speak the same space (read only).")
    ] = False,
    index: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="With --check-index: the index's file, or its name; else the one that qmd opens here."),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, max=600, help="For one request.")] = 30.0,
    json_output: JsonOption = False,
) -> None:
    """Prove the way from this laptop to the stack.

    Name, port, certificate, health, an embedding, a rerank, a completion, a chat, closed ports, the path. Needs no project and no Docker.
    Exit status 1 when a link is broken; the first is named. With --check-index: 1 when stored vectors are not of the server's space, or
    rerank scores of zero are left in the client's cache.
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
    if index and not check_index:
        raise ConfigurationError("--index goes with --check-index", f"qmdctl test --check-index --index {index}")
    key = read_key(key_file)
    here = found_project(call)
    if check_index:
        _check_index(terminal, index, choose_names(embed_url, embed_url, here.hostnames).embed, key, timeout)
        return
    names = choose_names(embed_url, generate_url, here.hostnames)
    tailnet, without = look(read_tailnet)
    names.notes += [note for note in (proxy_note(names), here.problem) if note]
    terminal.note(f"Testing {names.embed} ({names.origins['embed']}) and {names.generation} ({names.origins['vllm']}) …", "dim")
    laptop = Laptop(tailnet, without, key, timeout, here.udp_ports)
    proof = prove(names, laptop)
    terminal.result(as_text(names, proof), payload(names, laptop, proof))
    if proof.broken:
        raise typer.Exit(1)


def _check_index(terminal: Terminal, index: str | None, url: str, key: str | None, timeout: float) -> None:
    """Compare the local index with the server. Exit with 1 where something has to be mended."""
    import httpx

    from qmdctl.index import report
    from qmdctl.index.compare import compare
    from qmdctl.index.database import read_index
    from qmdctl.index.locate import find_index
    from qmdctl.index.server import EmbedServer
    from qmdctl.laptop.dial import trust

    read = read_index(find_index(index))
    terminal.note(f"Comparing {read.path} with {url} …", "dim")
    # Never through a proxy of the environment, as in `prove`.
    with httpx.Client(trust_env=False, verify=trust() if url.startswith("https:") else False) as client:
        verdict = compare(read, EmbedServer(url, timeout, key, client))
    terminal.result(report.as_text(read, url, verdict), report.payload(read, url, verdict))
    if not report.healthy(read, verdict):
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
