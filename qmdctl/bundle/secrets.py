"""Every secret that a project, its environment and its containers hold, so that it can be taken out of a text wherever it stands.

Names tell which values are secrets (`secret_name`); the content of key files is secret whole, line by line.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from qmdctl.compose_files import references
from qmdctl.lock import FOLDER
from qmdctl.redaction.names import secret_name, secret_option
from qmdctl.releases.journal import FILE as JOURNAL
from qmdctl.releases.prepare import TREE
from qmdctl.releases.steps import EDITED

LARGEST, LINES = 1 << 20, 5000  # bytes and lines of a key file
SETTING = re.compile(r"^[ \t]*(?:#[ \t]*)?(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*(.*)$", re.MULTILINE)
QUOTED = re.compile(r"^[ \t]*(?:#[ \t]*)?(?:export[ \t]+)?([A-Za-z_]\w*)=([\"'])(.*?)\2", re.MULTILINE | re.DOTALL)  # over lines as well
URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s\"'<>]+", re.IGNORECASE)
# A string of JSON as far as it goes; no half an escape at its end.
STEP_TEXT = re.compile(r'"(?:before|after)"\s*:\s*"((?:[^"\\]|\\(?:u[0-9a-fA-F]{4}|[^u]))*)')
ASSIGNED = re.compile(r"([A-Za-z_][\w-]*)=(.*)", re.DOTALL)
REFERENCE = re.compile(r"^\$\{.*\}$", re.DOTALL)  # a compose file's, to a variable
PUBLIC_FILES = ("COMPOSE_FILE", "CA_FILE", "SSL_CERT_FILE", "COMPOSE_ENV_FILES")


class Secrets:
    """`known` grows as places are looked at; `unread` are key files that could not be read, with the reason."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.known: set[str] = set()
        self.unread: list[str] = []
        self._variables: set[str] = set()  # secret by where a compose file takes them
        self._seen: set[Path] = set()

    def from_project(self) -> None:
        """.env (also what is commented out there), the compose files with their secrets and env_files, and all in `secrets/`.

        Also .env as it was: what upgrades and rollbacks keep of it in .qmdctl.
        """
        if self.folder is None:
            return
        for path in sorted({*self.folder.glob("*.yaml"), *self.folder.glob("*.yml")}):
            self.from_compose_file(path)
        for path in sorted(self.folder.glob(".env*")):  # after those, which tell that A_TOKEN comes from a variable of another name
            self.from_env_file(path)
        kept = self.folder / FOLDER
        for path in (kept / EDITED, kept / TREE / ".env"):
            self.from_env_file(path)
        for path in sorted(kept.glob(f"{JOURNAL}*")):  # with a half-written one that a power cut left beside it
            self.from_journal(path)
        for path in sorted((self.folder / "secrets").rglob("*")):
            if path.name != ".gitignore":
                self.from_key_file(path)

    def from_env_file(self, path: Path) -> None:
        """A file of NAME=value lines, whatever else is wrong with it."""
        self._from_env_text(self._read(path))

    def from_journal(self, path: Path) -> None:
        """The texts of .env before and after the steps of an upgrade (releases/journal.py), of a file that was cut off too."""
        for match in STEP_TEXT.finditer(self._read(path)):
            with contextlib.suppress(ValueError):
                self._from_env_text(json.loads(f'"{match[1]}"', strict=False))

    def from_environment(self, environment: Mapping[str, str] = os.environ) -> None:
        for name, value in environment.items():
            self.from_setting(name, value)

    def from_setting(self, name: str, value: str, *, every_file: bool = False) -> None:
        """One variable: itself where its name says so, the file that it names, a user in a URL, an option in a command line.

        `every_file`: whatever a key that ends in _FILE is called, and not only HF_TOKEN_FILE and its like.
        """
        kind, marked, _ = name.rpartition("_FILE")
        names_file = bool(marked) and name not in PUBLIC_FILES and (every_file or secret_name(kind.rstrip("_")))
        spellings = {value, value.strip(), value.strip().strip("\"'"), re.sub(r"\s+#.*$", "", value).strip().strip("\"'")}
        if secret_name(name) or name in self._variables:
            self.known |= spellings
        for text in spellings:
            if names_file and text and "\n" not in text:
                self.from_key_file(self._place(text))
            self.from_text(text)

    def from_compose_file(self, path: Path) -> None:
        """The values under secret names in it, and the files that it names as secrets or env_file."""
        import yaml

        try:
            data = yaml.load(self._read(path), _loader())
        except yaml.YAMLError:
            return
        self.from_data(data)
        for node in _mappings(data):
            files = node.get("env_file")
            for entry in files if isinstance(files, list) else [files]:
                named = entry.get("path") if isinstance(entry, dict) else entry
                if isinstance(named, str) and "$" not in named:
                    self.from_env_file(self._place(named))
        declared = data.get("secrets") if isinstance(data, dict) else None
        for secret in declared.values() if isinstance(declared, dict) else ():
            if isinstance(secret, dict):
                if isinstance(secret.get("file"), str) and "$" not in secret["file"]:
                    self.from_key_file(self._place(secret["file"]))
                self.known.add(os.environ.get(str(secret.get("environment")), ""))

    def from_key_file(self, path: Path) -> None:
        """A file whose every line is a secret; comments are kept unless they are long."""
        for line in self._read(path, "utf-8-sig").splitlines()[:LINES]:
            text = line.strip()
            if not text.startswith("#") or len(text) > 60:
                self.known |= {text, text.removeprefix("sha256:").strip()}
            elif SETTING.match(text):
                self.from_setting(*SETTING.match(text).groups())  # type: ignore[union-attr]

    def from_document(self, name: str, text: str) -> None:
        """What a program printed as JSON or YAML; other text tells nothing."""
        import yaml

        try:
            if name.endswith((".yaml", ".yml")):
                self.from_data(yaml.load(text, _loader()))
            elif name.endswith(".json"):
                self.from_data(json.loads(text))
        except (ValueError, RecursionError, yaml.YAMLError):
            return

    def from_data(self, data: Any, name: str = "") -> None:
        """Every value under a secret name, every NAME=value, every option of a command line in it."""
        if isinstance(data, str):
            if assigned := ASSIGNED.fullmatch(data):
                self.from_data(assigned[2], assigned[1])
                self.from_setting(assigned[1], assigned[2])
            if secret_name(name):
                self._variables |= {variable for variable, _ in references(data) if not variable.endswith("_FILE")}
                self.known |= {data} - set(REFERENCE.findall(data))
            self.from_text(data)
        elif isinstance(data, dict):
            for key, value in data.items():
                self.from_data(value, str(key))
        elif isinstance(data, list):
            self.known |= set(_options([str(entry) for entry in data if not isinstance(entry, dict | list)]))
            for entry in data:
                self.from_data(entry, name)
        elif isinstance(data, int | float) and not isinstance(data, bool) and secret_name(name):
            self.known.add(str(data))

    def from_text(self, text: str) -> None:
        """The users and keys of the URLs in it, and the values of its options."""
        for url in URL.findall(text):
            self.known |= set(_of_url(url))
        if "--" in text:
            try:
                words = shlex.split(text)
            except ValueError:
                words = text.split()
            self.known |= set(_options(words))

    def _from_env_text(self, text: str) -> None:
        for pattern, group in ((SETTING, 2), (QUOTED, 3)):
            for match in pattern.finditer(text):
                self.from_setting(match[1], match[group], every_file=True)

    def _place(self, text: str) -> Path:
        path = Path(text.removeprefix("file:")).expanduser()
        return path if path.is_absolute() or self.folder is None else self.folder / path

    def _read(self, path: Path, encoding: str = "utf-8") -> str:
        """The text of a file that is there; each file once."""
        try:
            real = path.resolve()
            if real in self._seen or not real.is_file():
                return ""
            self._seen.add(real)
            with real.open("rb") as file:
                return file.read(LARGEST).decode(encoding, "replace").replace("\0", "")
        except (OSError, ValueError, RuntimeError) as error:
            self.unread.append(f"{path.name}: {getattr(error, 'strerror', None) or error}")
            return ""


def _of_url(url: str) -> Iterator[str]:
    # As urllib has it, and up to the last @: a password may hold a slash.
    for text in (url, url.replace("\\/", "/")):
        user, at, _ = text.split("://", 1)[1].rpartition("@")
        name, colon, password = user.partition(":")
        if at:
            yield from (password, unquote(password)) if colon else (name, unquote(name))
        try:
            parts = urlsplit(text)
            query = parse_qsl(parts.query)
        except ValueError:
            continue
        for key, value in query:
            if secret_name(key) or key.lower() in ("key", "sig", "signature", "auth", "code", "pwd"):
                yield value


def _options(words: Iterable[str]) -> Iterator[str]:
    """The values of --api-key and its like: all words up to the next option."""
    taking = False
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            taking = secret_option(name) and not equals
            if secret_option(name) and equals:
                yield value
        elif taking:
            yield word


def _mappings(data: Any) -> Iterator[dict[Any, Any]]:
    if isinstance(data, dict):
        yield data
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _mappings(value)


def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Tags such as Compose's !reset are passed over."""

    def passed(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else getattr(node, "value", None)

    Loader.add_multi_constructor("!", passed)
    return Loader
