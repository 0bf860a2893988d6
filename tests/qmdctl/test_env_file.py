"""The grammar of .env, held against its two other readers: Docker Compose itself and python-dotenv."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import dotenv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmdctl import env_file
from qmdctl.errors import ConfigurationError
from tests.support.require import require

ACCEPTED = """# comment
PLAIN=value
EMPTY=
SPACES=two words
COMMENT=value # not part of it
HASH=a#b
SINGLE='literal $HOME # and "more"'
DOUBLE="text # inside, it's fine"
AFTER='quoted' # comment
export EXPORTED=yes
URL=http://host:8000/v1?a=b&c=d
EQUALS=a=b
LIST=a,b,c
PATH_LIST=compose.yaml:compose.cpu.yaml
"""


def compose_reads(text: str, names: list[str], folder: Path) -> dict[str, str]:
    """What Compose puts in the place of ${NAME} with this .env."""
    (folder / ".env").write_text(text)
    environment = {name: f"${{{name}}}" for name in names}
    (folder / "compose.yaml").write_text(json.dumps({"services": {"x": {"image": "x", "environment": environment}}}))
    done = subprocess.run(["docker", "compose", "config", "--format", "json"], cwd=folder, capture_output=True, text=True, check=True)
    values: dict[str, str] = json.loads(done.stdout)["services"]["x"]["environment"]
    # Its output is a compose file again, where a dollar is doubled.
    return {name: value.replace("$$", "$") for name, value in values.items()}


def need_compose() -> None:
    ok = shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    require("docker", bool(ok), "docker compose is not installed")


def test_what_is_accepted_reads_the_same_in_compose_and_in_dotenv(tmp_path: Path) -> None:
    need_compose()
    file = env_file.parse(ACCEPTED)
    assert file.problems == []
    assert file.values["SINGLE"] == 'literal $HOME # and "more"'
    assert file.values == dotenv.dotenv_values(stream=io.StringIO(ACCEPTED))
    assert file.values == compose_reads(ACCEPTED, list(file.values), tmp_path)


VALUES = st.text(st.sampled_from("ab 1/#$'\"=:,.{}~@-_é\\`"), max_size=8)


@given(VALUES)
def test_any_accepted_line_reads_the_same_in_dotenv(value: str) -> None:
    text = f"KEY={value}\n"
    file = env_file.parse(text)
    if not file.problems:
        assert file.values == dotenv.dotenv_values(stream=io.StringIO(text))


def test_random_accepted_lines_read_the_same_in_compose(tmp_path: Path) -> None:
    """One call of Compose for many lines: each costs a process."""
    import random

    need_compose()
    pick = random.Random(7)
    lines = [f"K{i}=" + "".join(pick.choices("ab 1/#$'\"=:,.{}~@-_é\\`", k=pick.randrange(8))) for i in range(600)]
    accepted = [line for line in lines if not env_file.parse(line).problems]
    assert 100 < len(accepted) < 600
    text = "\n".join(accepted) + "\n"
    file = env_file.parse(text)
    assert file.values == compose_reads(text, list(file.values), tmp_path)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]) | st.just(" "), max_size=20))
def test_a_value_that_is_written_reads_back(value: str) -> None:
    file = env_file.parse("# KEY=old\nOTHER=1\n")
    try:
        file.set("KEY", value)
    except ConfigurationError:
        return
    again = env_file.parse(file.render())
    assert again.problems == []
    assert again.values == {"KEY": value, "OTHER": "1"}
    assert again.values == dotenv.dotenv_values(stream=io.StringIO(file.render()))


@pytest.mark.parametrize(
    ("line", "message", "fix"),
    [
        ("EMBED_PORT", "is not KEY=value", "KEY=value"),
        ("EMBED_PORT = 8001", "not followed by =", "without spaces"),
        ("EMBED_PORT: 8001", "not followed by =", "KEY=value"),
        ("A= value", "space after =", "remove"),
        ("A= # comment", "space after =", "remove"),
        ("A=$HOME/models", "without single quotes", "'$HOME/models'"),
        ('A="$HOME"', "inside double quotes", "'$HOME'"),
        ('A="a\\nb"', "backslash", "remove"),
        ("A='open", "not closed", "end the value"),
        ("A='x'y", "follows the closing quote", "inside the quotes"),
        ("A=it's", "quote in the middle", "other kind"),
        ("A=1\r", "carriage return", "LF"),
        ("1A=2", "is not KEY=value", "KEY=value"),
    ],
)
def test_a_line_that_is_read_in_two_ways_is_refused_with_its_number_and_a_fix(line: str, message: str, fix: str) -> None:
    file = env_file.parse(f"OK=1\n{line}\n")
    (problem,) = file.problems
    assert problem.line == 2
    assert message in problem.message
    assert fix in problem.fix
    assert file.values == {"OK": "1"}
    with pytest.raises(ConfigurationError, match=r"\.env, line 2"):
        file.check()


def test_a_key_given_twice_is_refused_and_the_first_line_named() -> None:
    (problem,) = env_file.parse("A=1\nB=2\nA=3\n").problems
    assert problem.line == 3
    assert "first in line 1" in problem.message


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        env_file.parse("A\nB\nC=1\n").check()
    assert "line 1" in caught.value.message
    assert "line 2" in caught.value.details


def test_setting_a_key_keeps_comments_and_order() -> None:
    file = env_file.parse("# Port.\nPORT=1\n\n# Model.\n# MODEL=default\n")
    file.set("MODEL", "my/model")
    file.set("PORT", "2")
    file.set("NEW", "a b")
    assert file.render() == "# Port.\nPORT=2\n\n# Model.\nMODEL=my/model\nNEW='a b'\n"
    file.unset("PORT")
    assert "# PORT=2" in file.render()


def test_a_file_that_is_not_utf8_or_has_a_bom_is_named(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"A=\xff\n")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        env_file.read(path)
    path.write_bytes("\ufeffA=1\n".encode())
    assert "byte order mark" in env_file.read(path).problems[0].message


def test_a_file_is_replaced_with_its_mode_and_a_link_stays_one(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / ".env"
    env_file.write(path, "A=1\n")
    path.chmod(0o600)
    link.symlink_to(path)
    env_file.write(link, "A=2\n")
    assert (link.is_symlink(), path.read_text(), path.stat().st_mode & 0o777) == (True, "A=2\n", 0o600)
    assert sorted(os.listdir(tmp_path)) == [".env", "real"]


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on a file's size stops the write halfway, as a full disk does."""
    path = tmp_path / ".env"
    env_file.write(path, "A=1\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(ConfigurationError, match="cannot be written: File too large"):
            env_file.write(path, "A=1\n" * 1_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "A=1\n"
    assert os.listdir(tmp_path) == [".env"]


@pytest.mark.parametrize("key", ["HF_TOKEN", "API_KEY", "API_KEYS", "MY_SECRET", "db_password"])
def test_what_looks_like_a_secret_is_not_shown(key: str) -> None:
    assert env_file.shown(key, "very-secret") == "…"
    assert env_file.shown(key, "") == ""


@pytest.mark.parametrize("key", ["HF_TOKEN_FILE", "API_KEYS_FILE", "MAX_BATCH_TOKENS", "TOKENIZER_THREADS"])
def test_paths_of_secrets_and_counts_of_tokens_are_shown(key: str) -> None:
    assert env_file.shown(key, "./secrets/hf_token") == "./secrets/hf_token"
