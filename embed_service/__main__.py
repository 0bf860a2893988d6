"""`embed-service serve | check | download | control | config`.

`serve` binds its port before it imports anything heavy, so that clients of a restarting service wait in the kernel's queue instead of
being refused (they give up for good after 4 s of refusals).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys

from embed_service import __version__
from embed_service.control.arguments import add_arguments

CA_FILE = "/run/secrets/ca"  # of a proxy that looks into TLS; empty where the stack's .env names none


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="embed-service", description="OpenAI embeddings and Cohere-style rerank over HTTP.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve on HOST:PORT until SIGTERM or Ctrl-C (settings come from the environment)")
    commands.add_parser("check", help="check models, disk and device without serving; exit 3 when something is missing")
    download = commands.add_parser("download", help="download models into the cache; one line of JSON per step")
    download.add_argument("models", nargs="+", metavar="MODEL[@REVISION]", help="Hugging Face ids, of the generation server's model too")
    control = commands.add_parser("control", help="pause, resume or switch the models of the running service; one line of JSON per step")
    add_arguments(control)
    config = commands.add_parser("config", help="print the settings in force")
    config.add_argument("--markdown", action="store_true", help="print docs/configuration.md instead")
    return parser


def _bind() -> socket.socket:
    """Listen on HOST:PORT at once. The settings object is not there yet: it costs 0.3 s to import."""
    host = os.environ.get("HOST") or "127.0.0.1"
    port = os.environ.get("PORT") or "8001"
    if not port.isdecimal() or int(port) > 65535:
        raise SystemExit(f"PORT: {port!r} is not a port number (0 to 65535).")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, int(port)))
    except OSError as error:
        raise SystemExit(f"HOST={host} PORT={port}: cannot listen ({error.strerror}). Stop what holds the port, or set PORT.") from None
    sock.listen(2048)
    return sock


def _trust(ca_file: str) -> None:
    """For every HTTP client that is imported after this. What is set already is left as it is."""
    with contextlib.suppress(OSError):
        if os.stat(ca_file).st_size:
            for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
                os.environ[name] = os.environ.get(name) or ca_file


def main(argv: list[str] | None = None, ca_file: str = CA_FILE) -> int:
    """The exit status: 0, 1 when a download or a command to the service failed, 2 for unusable settings, 3 when `check` finds something
    missing or no service is there to control."""
    arguments = _parser().parse_args(argv)
    sock = _bind() if arguments.command == "serve" else None
    _trust(ca_file)

    from embed_service.errors import SettingsError
    from embed_service.settings import load_settings

    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"embed-service: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if sock is not None:
        from embed_service.server import serve

        return serve(settings, sock)
    if arguments.command == "check":
        from embed_service.models.check import main as check

        return check(settings)
    if arguments.command == "download":
        from embed_service.models.prefetch import main as download

        return download(arguments.models, settings)
    if arguments.command == "control":
        from embed_service.control.client import main as control

        return control(arguments, settings)
    if arguments.markdown:
        from embed_service.config_docs import render

        print(render(), end="")  # noqa: T201
    else:
        print(settings.model_dump_json(indent=2))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
