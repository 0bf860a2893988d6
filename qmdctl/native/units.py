"""systemd's units that the seed installs: qmd-embed (its deploy.py) and, in later versions, qmd-vllm (`docker run` in the foreground)."""

from __future__ import annotations

import os
import pwd
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from qmdctl.errors import MissingError
from qmdctl.process import Completed, run
from qmdctl.redaction import command_lines

Run = Callable[..., Completed]
NAMES = ("qmd-embed", "qmd-vllm")
RUNNING = ("active", "activating", "reloading", "deactivating")
# Names of systemctl(1)'s properties.
PROPERTIES = ("LoadState", "ActiveState", "UnitFileState", "FragmentPath", "User", "WorkingDirectory", "Environment", "EnvironmentFiles")
FOLDERS = (Path("/etc/systemd/system"), Path("/usr/local/lib/systemd/system"), Path("/usr/lib/systemd/system"))


@dataclass(frozen=True)
class Manager:
    """A systemd that has units. `user`: whose, None for the system's own."""

    user: str | None = None

    @property
    def needs_root(self) -> bool:
        return self.user is None

    def command(self, *arguments: str) -> list[str]:
        """systemctl on this manager: root reaches a user's through the user's own bus."""
        options = [] if self.user is None else ["--user", *([f"--machine={self.user}@.host"] if os.geteuid() == 0 else [])]
        return ["systemctl", *options, *arguments]


@dataclass(frozen=True)
class Unit:
    """`environment`: with the files that EnvironmentFile= names; `unreadable`: those that this user may not read.

    `enabled`: started at boot. `linked`: its file, where it lies outside systemd's folders: then `disable` forgets it.
    """

    name: str
    manager: Manager
    path: str
    active: bool
    enabled: bool
    state: str  # as systemctl has it: "active, enabled"
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    unreadable: tuple[str, ...] = ()
    user: str = "root"
    working_directory: str = ""
    linked: str = ""

    @property
    def file(self) -> str:
        return f"{self.name}.service"

    @property
    def takes_part(self) -> bool:
        """Whether it runs, or would after a reboot."""
        return self.active or self.enabled

    def option(self, name: str) -> str:
        """The value of `--name` on its command line; empty where it is not there."""
        for position, part in enumerate(self.command):
            if part == name and position + 1 < len(self.command):
                return self.command[position + 1]
            if part.startswith(f"{name}="):
                return part.partition("=")[2]
        return ""

    def payload(self) -> dict[str, object]:
        return {
            "unit": self.file,
            "manager": f"user {self.manager.user}" if self.manager.user else "system",
            "state": self.state,
            "path": self.path,
            "user": self.user,
            "command": command_lines.command(self.command),
        }


def find_units(runner: Run = run) -> tuple[list[Unit], str]:
    """The units that are there, and why systemd could not be asked (empty where it could)."""
    found: list[Unit] = []
    problem = ""
    for manager in managers():
        for name in NAMES:
            try:
                done = runner(manager.command("show", f"{name}.service", f"--property={','.join((*PROPERTIES, 'ExecStart'))}"), check=False)
            except MissingError:
                return [], "there is no systemctl on this machine (macOS, or a container)"
            if not done.ok:
                # A user without a session has no manager: then there is no unit of theirs either.
                problem = problem or ("" if manager.user else _why(done))
                break
            unit = parse(name, manager, done.stdout)
            if unit:
                found.append(unit)
    return found, problem


def managers() -> list[Manager]:
    """The system's and the caller's own; behind sudo that of who called it."""
    if os.geteuid() == 0:
        caller = os.environ.get("SUDO_USER", "root")
        return [Manager()] if caller == "root" else [Manager(), Manager(caller)]
    return [Manager(), Manager(user_name())]


def user_name() -> str:
    """Of this process; its number where it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def left_files() -> list[Path]:
    """Unit files of these names, for a machine whose systemd does not run."""
    return [path for folder in FOLDERS for name in NAMES if (path := folder / f"{name}.service").is_file()]


def home_of(user: str) -> Path | None:
    try:
        return Path(pwd.getpwnam(user).pw_dir)
    except KeyError:
        return None


def parse(name: str, manager: Manager, shown: str) -> Unit | None:
    """From the output of `systemctl show`; None where there is no such unit."""
    values: dict[str, str] = {}
    files: list[str] = []
    for line in shown.splitlines():
        key, _, value = line.partition("=")
        if key == "EnvironmentFiles":
            files.append(re.sub(r" \(ignore_errors=(yes|no)\)$", "", value))
        elif key == "ExecStart":
            values.setdefault(key, value)
        else:
            values[key] = value
    if values.get("LoadState") not in ("loaded", "masked", "bad-setting", "error") or not values.get("FragmentPath"):
        return None
    environment = dict(entry.partition("=")[::2] for entry in _words(values.get("Environment", "")))
    unreadable = []
    for file in filter(None, files):
        try:
            environment |= environment_file(Path(file).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            unreadable.append(file)
    active, enabled, path = values.get("ActiveState", ""), values.get("UnitFileState", ""), values["FragmentPath"]
    real = Path(path).resolve()
    return Unit(
        name=name,
        manager=manager,
        path=path,
        active=active in RUNNING,
        enabled=enabled.startswith("enabled"),
        state=", ".join(filter(None, (active, enabled))),
        command=tuple(_expanded(part, environment) for part in _arguments(values.get("ExecStart", ""))),
        environment=environment,
        unreadable=tuple(unreadable),
        user=values.get("User") or manager.user or "root",
        working_directory=values.get("WorkingDirectory", "").removeprefix("!"),
        linked=str(real) if str(real) != path else "",
    )


def environment_file(text: str) -> dict[str, str]:
    """The assignments of a file as systemd.exec(5) has them: KEY=VALUE, quotes taken off, comments begin with # or ;."""
    values = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith(("#", ";")):
            words = _words(value) if value[:1] in "'\"" and value else [value.strip()]
            values[key.strip()] = words[0] if words else ""
    return values


def _arguments(shown: str) -> list[str]:
    """The command line in `{ path=… ; argv[]=… ; ignore_errors=no ; … }`."""
    match = re.search(r"argv\[\]=(.*?) ; (?:ignore_errors|flags)=", shown)
    return _words(match.group(1)) if match else []


def _expanded(word: str, environment: dict[str, str]) -> str:
    """${PORT} or $PORT as systemd replaces it; it leaves what is not set empty."""
    return re.sub(r"\$\{(\w+)\}|^\$(\w+)$", lambda match: environment.get(match.group(1) or match.group(2), ""), word)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _why(done: Completed) -> str:
    said = (done.stderr or done.stdout).strip().splitlines()
    for line in said:
        if "not been booted with systemd" in line or "Failed to connect to bus" in line:
            return f"systemd does not run here (a container, or WSL without it): {line}"
    return f"systemctl does not answer: {said[-1] if said else f'status {done.returncode}'}"
