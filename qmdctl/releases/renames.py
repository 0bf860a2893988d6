"""Settings that a release calls by another name: `renames.yaml` of that release's own files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from qmdctl.env_file import EnvFile
from qmdctl.errors import ConfigurationError

FILE = "qmdctl/releases/renames.yaml"


@dataclass(frozen=True)
class Rename:
    """`old` is called `new` since the version `since`."""

    old: str
    new: str
    since: str

    def payload(self) -> dict[str, str]:
        return asdict(self)


def read(folder: Path) -> list[Rename]:
    """The table in a project's files; empty where they have none. ConfigurationError where it cannot be used."""
    import yaml

    path = folder / FILE
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [Rename(str(one["from"]), str(one["to"]), str(one["since"])) for one in data["renames"]]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{FILE} of that release cannot be used: {error}", "choose another release") from None


def apply(env: EnvFile, renames: Iterable[Rename]) -> list[Rename]:
    """Rename keys on their own lines. Where both names are set the new one counts and the old one is commented out. Those applied."""
    done = []
    for rename in renames:
        if rename.old not in env.values:
            continue
        if rename.new in env.values:
            env.unset(rename.old)
        else:
            _move(env, rename.old, rename.new)
        done.append(rename)
    return done


def back(env: EnvFile, renames: Iterable[Rename], wanted: Iterable[str]) -> None:
    """Give the keys that are `wanted` under an old name that name again, as far as they are set under a later one."""
    later = {rename.old: rename.new for rename in renames}
    keys = set(wanted)
    for key in keys - env.values.keys():
        name, seen = key, set[str]()
        while name in later and name not in seen and name not in env.values:
            seen.add(name)
            name = later[name]
        if name in env.values and name not in keys:
            _move(env, name, key)


def _move(env: EnvFile, old: str, new: str) -> None:
    number = env.line_of.pop(old)
    line = env.lines[number - 1]
    head, _, rest = line.partition("=")
    env.lines[number - 1] = f"{head[: head.rindex(old)]}{new}={rest}"
    env.values[new], env.line_of[new] = env.values.pop(old), number
