"""Parts about the project: qmdctl's own findings, the configuration with its origins, what qmdctl remembers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qmdctl.bundle.parts import Failed, Part, command, file

# Each in a process of its own, which is what a user would type, and which can be ended when its time is up.
VERBS = {
    "version.json": (("version", "--json"), 30.0),
    "config.json": (("config", "--all", "--json"), 30.0),
    "status.json": (("status", "--json"), 30.0),
    "doctor.json": (("doctor", "--json"), 90.0),
    "health.json": (("health", "--timeout", "10", "--json"), 90.0),
}
REMEMBERED, FILES = 256 << 10, 60  # bytes of a file in .qmdctl, and how many


def verb_parts(folder: Path) -> Iterator[Part]:
    from qmdctl.releases import child

    for name, (words, seconds) in VERBS.items():
        full = child.command(folder, *words)
        yield command(f"qmdctl/{name}", full, seconds=seconds, cwd=folder, shown=f"qmdctl {' '.join(words)}", any_status=True)


def project_parts(folder: Path) -> Iterator[Part]:
    yield Part("project/env-lint.txt", ".env, read as qmdctl reads it", lambda: _lint(folder / ".env"))
    yield file("project/env.txt", folder / ".env")
    for path in sorted(folder.glob("compose*.y*ml")):
        yield file(f"project/{path.name}", path)
    yield command("project/compose-config.yaml", ["docker", "compose", "--profile", "*", "config"], cwd=folder, seconds=30)
    yield Part("project/secrets.txt", "names, sizes and modes in secrets/", lambda: _listed(folder / "secrets"))
    yield command("project/git.txt", ["git", "log", "-1", "--format=%H %cI", "--", "."], cwd=folder)
    for path in sorted((folder / "tailscale" / "services").glob("**/*.json")):
        yield file(f"project/tailscale-services/{path.parent.name}-{path.name}", path)
    from qmdctl.state import default_path

    yield file("qmdctl/state.json", default_path())
    kept = [path for path in sorted((folder / ".qmdctl").rglob("*")) if path.is_file() and path.name not in ("lock", "reserve")]
    for path in kept[-FILES:]:
        yield file(f"qmdctl/project/{path.relative_to(folder / '.qmdctl')}", path, largest=REMEMBERED)


def _lint(path: Path) -> bytes:
    from qmdctl import env_file
    from qmdctl.errors import QmdError

    try:
        parsed = env_file.read(path)
    except QmdError as error:
        raise Failed(error.message) from None
    lines = [f"{len(parsed.values)} keys", *(f"! {problem}" for problem in parsed.problems)]
    return "".join(f"{line}\n" for line in lines).encode()


def _listed(folder: Path) -> bytes:
    lines = []
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        link = f" -> {os.readlink(path)}" if path.is_symlink() else ""
        lines.append(f"{about.st_mode:o} {about.st_uid}:{about.st_gid} {about.st_size} {path.relative_to(folder)}{link}\n")
    return "".join(lines).encode()
