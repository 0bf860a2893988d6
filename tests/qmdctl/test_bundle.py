"""`qmdctl bundle` without an engine: keys planted in every place a user may put them, and none in the archive."""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from qmdctl.bundle.secrets import Secrets
from qmdctl.releases.journal import Journal, Step
from tests.qmdctl.conftest import Run
from tests.qmdctl.leaks import contents, leaks
from tests.support.service import ROOT

PEM = "-----BEGIN PRIVATE KEY-----\nMIIBVwIBADANBgkqhkiG9w0B\nAQEFAASCAT8wggE7AgEAAkEA\n-----END PRIVATE KEY-----\n"
KEYS = {
    "in .env": "env-T0ken/with$special&chars",
    "short, in .env": "Zq7$",
    "commented out in .env": "once-was-a-token-41",
    "in a line of .env that is wrong": "wrong-line-key-42",
    "over several lines of .env": "first-line-of-43\nsecond-line-of-43",
    "an option in VLLM_EXTRA_ARGS": "vllm-key-44",
    "its second value": "vllm-key-45",
    "a proxy's password": "pr0xy/p@ss",
    "a parameter of a URL": "url-param-47",
    "in the environment": "from-the-environment-48",
    "over lines in the environment": "env-line-one-49\nenv-line-two-49",
    "in a proxy of the environment": "lower-proxy-50",
    "in a file that .env names": "named-file-key-51",
    "in a file that the environment names": "named-file-key-52",
    "plain in the API keys": "plain-api-key-53",
    "a digest of the API keys": "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8",
    "a file in secrets": "in-secrets-54",
    "of several lines in secrets": PEM,
    "in the override's environment": "override-map-55",
    "in the override's list": "override-list-56",
    "a short option of the override's command": "override-command-57",
    "in a file that the override names": "override-env-file-58",
    "a secret that the override declares": "declared-secret-59",
    "a variable under another name in the override": "renamed-variable-60",
    "with letters that are not ASCII": "Schlüssel-ключ-61",
    "in an .env that going back replaced": "correct horse battery staple 62",
    "in the .env of a release that was left": 'in quotes, with "words" 63',
    "before a step of an upgrade": "before it there was 64",
    "after a step of an upgrade": "after-it-there-is-65",
    "in a journal that was cut off": "half of it is there 66",
}


@pytest.fixture
def planted(folder: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """(the project, the environment): every key in its place, and all of them in a history that qmdctl kept."""
    (tmp_path / "elsewhere").write_text(KEYS["in a file that .env names"] + "\n")
    (tmp_path / "token").write_text(KEYS["in a file that the environment names"] + "\n")
    secrets = folder / "secrets"
    (secrets / "deep").mkdir(parents=True)
    (secrets / "keys").write_text(f"# laptop 2026-01-31\nsha256:{KEYS['a digest of the API keys']}\n{KEYS['plain in the API keys']}\n")
    (secrets / "hf").write_text(KEYS["a file in secrets"])
    (secrets / "unicode").write_text(KEYS["with letters that are not ASCII"])
    (secrets / "deep" / "key.pem").write_text(PEM)
    (folder / ".env").write_text(
        f"HF_TOKEN='{KEYS['in .env']}'\n"
        f"DB_PASSWORD='{KEYS['short, in .env']}'\n"
        f"# OLD_TOKEN={KEYS['commented out in .env']}\n"
        f"WRONG_KEY = {KEYS['in a line of .env that is wrong']}\n"
        f'LINES_SECRET="{KEYS["over several lines of .env"]}"\n'
        f"VLLM_EXTRA_ARGS='--api-key {KEYS['an option in VLLM_EXTRA_ARGS']} {KEYS['its second value']} --port 8000'\n"
        f"HTTPS_PROXY=http://anna:{KEYS['a proxy' + chr(39) + 's password']}@proxy.example:3128\n"
        f"HF_ENDPOINT=https://mirror.example/x?token={KEYS['a parameter of a URL']}&page=2\n"
        f"GENERATION_API_KEY_FILE={tmp_path / 'elsewhere'}\nAPI_KEYS_FILE=./secrets/keys\n"
        f"EMBED_MODEL=acme/embedder\nPLAIN={KEYS['a variable under another name in the override']}\n"
    )
    (folder / "more.env").write_text(f"SOME_TOKEN={KEYS['in a file that the override names']}\n")
    (folder / "declared.txt").write_text(KEYS["a secret that the override declares"])
    (folder / "compose.override.yaml").write_text(
        "services:\n  embed:\n    image: !reset null\n    env_file: more.env\n"
        f'    environment: {{A_SECRET: "{KEYS["in the override" + chr(39) + "s environment"]}", RENAMED_TOKEN: "${{PLAIN}}"}}\n'
        f'    command: ["serve", "--api-key", "{KEYS["a short option of the override" + chr(39) + "s command"]}"]\n'
        f"  extra:\n    image: x\n    environment:\n      - THE_PASSWORD={KEYS['in the override' + chr(39) + 's list']}\n"
        "secrets: {one: {file: ./declared.txt}}\n"
    )
    environment = {
        "QMD_API_KEY": KEYS["in the environment"],
        "MY_PRIVATE_KEY": KEYS["over lines in the environment"],
        "http_proxy": f"http://user:{KEYS['in a proxy of the environment']}@10.0.0.1:1",
        "HF_TOKEN_FILE": str(tmp_path / "token"),
    }
    kept = folder / ".qmdctl"
    kept.mkdir()
    (kept / "env.edited").write_text(f"SMTP_PASSWORD={KEYS['in an .env that going back replaced']}\n")
    (kept / "next").mkdir()
    (kept / "next" / ".env").write_text(f"SMTP_PASSWORD='{KEYS['in the .env of a release that was left']}'\n")
    texts = {name: f"# .env\nSMTP_PASSWORD={KEYS[f'{name} a step of an upgrade']}\nEMBED_PORT=8001\n" for name in ("before", "after")}
    steps = [Step("file", "Write .env", {"path": ".env", **texts}), Step("file", "Write it", {"path": ".env", "before": None, "after": ""})]
    Journal(folder, "upgrade", "upgrade to x", steps).save()
    half = json.dumps({"facts": {"before": f"A=1\nSMTP_PASSWORD={KEYS['in a journal that was cut off']}\n# \u00fc"}})
    (kept / "upgrade.json.4711").write_text(half[: half.index("00fc")])
    log = "\n".join(f"{place}: {key}" for place, key in KEYS.items())
    (kept / "history.json").write_text(json.dumps({"log": log, "inner": json.dumps({"log": log})}))
    (kept / "log.txt").write_text(log)
    (kept / "encoded.txt").write_text(
        "\n".join(f"{quote(key, safe='')}\n{base64.b64encode(f'user:{key}'.encode()).decode()}\n" for key in KEYS.values())
    )
    (kept / f"log-{KEYS['a file in secrets']}.txt").write_text("a file that is called like a key")
    served = folder / "tailscale" / "services" / "embed"
    served.mkdir(parents=True)
    (served / "serve.json").write_text(json.dumps({"Proxy": f"http://u:{KEYS['a file in secrets']}@embed:8001"}))
    return folder, environment


def test_no_key_of_any_place_is_in_the_archive(planted: tuple[Path, dict[str, str]], qmdctl: Run, tmp_path: Path) -> None:
    folder, environment = planted
    out = tmp_path / "out"
    out.mkdir()
    done = qmdctl("--project", str(folder), "bundle", "--out", str(out), **environment)
    assert done.returncode == 0, done.stderr
    (archive,) = out.iterdir()
    assert archive.name.startswith("qmd-bundle-20")
    assert archive.stat().st_mode & 0o777 == 0o600
    files = contents(archive)
    told = {
        "the archive's bytes": gzip.decompress(archive.read_bytes()).decode("utf-8", "replace"),
        "stdout": done.stdout,
        "stderr": done.stderr,
    }
    found = [(where, place) for where, text in {**files, **told}.items() for place, key in KEYS.items() if leaks(text, key)]
    assert found == [], [place for where, place in found]
    assert not any(leaks("\n".join(files), key) for key in KEYS.values())

    assert "acme/embedder" in files["project/env.txt"]
    assert "GENERATION_API_KEY_FILE=" in files["project/env.txt"]
    assert "proxy.example:3128" in files["project/env.txt"]
    assert "page=2" in files["project/env.txt"]
    assert "--port 8000" in files["project/env.txt"]
    assert "line 4" in files["project/env-lint.txt"], "the line that is wrong"
    assert "deep/key.pem" in files["project/secrets.txt"]
    assert "MemTotal:" in files["machine/meminfo.txt"] or sys.platform == "darwin"
    assert "engine/containers.txt: FAILED: no engine" in files["manifest.txt"]
    assert "Look at it before you send it" in done.stdout
    assert "machine/system.txt" in done.stdout


def test_a_project_as_it_should_be_is_readable_whole(folder: Path, qmdctl: Run, tmp_path: Path) -> None:
    (folder / ".env").write_text("EMBED_MODEL=acme/embedder\nEMBED_PORT=8111\n")
    done = qmdctl("--project", str(folder), "bundle", "--out", str(tmp_path / "b.tar.gz"), "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    files = contents(tmp_path / "b.tar.gz")
    assert [one["name"] for one in data["members"]] == list(files)
    assert data["bytes"] == (tmp_path / "b.tar.gz").stat().st_size
    assert "engine/containers.txt" in [one["name"] for one in data["failed"]]
    assert json.loads(files["qmdctl/config.json"])["values"]["EMBED_MODEL"] == {
        "value": "acme/embedder",
        "origin": ".env",
        "about": "Embedding model: a Hugging Face id.",
    }
    assert json.loads(files["qmdctl/doctor.json"])["findings"]
    assert "[redacted]" not in "".join(text for name, text in files.items() if name.startswith("project/"))
    again = qmdctl("--project", str(folder), "bundle", "--out", str(tmp_path / "b.tar.gz"))
    assert again.returncode == 2
    assert "is there already" in again.stderr


def test_an_interrupt_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DOCKER_HOST": f"unix://{tmp_path}/none.sock", "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "qmdctl", "--project", str(folder), "bundle", "--out", str(out)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert any("qmdctl/config.json" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert "Interrupted: no archive is left" in rest
    assert "Traceback" not in rest
    assert list(out.iterdir()) == []


def test_no_such_folder(folder: Path, qmdctl: Run, tmp_path: Path) -> None:
    done = qmdctl("--project", str(folder), "bundle", "--out", str(tmp_path / "nowhere" / "b.tar.gz"))
    assert done.returncode == 2
    assert "mkdir -p" in done.stderr


def test_a_key_file_that_cannot_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "secrets").mkdir()
    (folder / "secrets" / "theirs").write_text("x")
    real = Path.open

    def refuse(self: Path, *arguments: object, **options: object) -> object:
        if self.name == "theirs":
            raise PermissionError(13, "Permission denied")
        return real(self, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    secrets = Secrets(folder)
    secrets.from_project()
    assert secrets.unread == ["theirs: Permission denied"]


@pytest.mark.parametrize(
    "text", ["", "{", '"before": "A', '{"before": "\\x"}', '{"before": ["A_TOKEN=b"], "after": null}', '{"after": "\\']
)
def test_a_journal_that_is_damaged_is_no_hindrance(folder: Path, text: str) -> None:
    (folder / ".qmdctl").mkdir()
    (folder / ".qmdctl/upgrade.json").write_text(text)
    secrets = Secrets(folder)
    secrets.from_project()
    assert secrets.unread == []


def test_what_containers_were_given_is_known(folder: Path) -> None:
    secrets = Secrets(folder)
    inspect = [
        {
            "Config": {
                "Env": ["A_TOKEN=given-to-it-1", "PORT=8001"],
                "Cmd": ["--api-key", "given-to-it-2"],
                "Labels": {"db_password": "given-3"},
            }
        }
    ]
    secrets.from_document("engine/inspect.json", json.dumps(inspect))
    secrets.from_document("project/compose-config.yaml", "services: {a: {environment: {X_SECRET: given-4, N: 5}, x: !reset null}}")
    secrets.from_document("logs/embed.txt", "A_TOKEN=not-a-document")
    secrets.from_document("broken.json", "{")
    assert secrets.known >= {"given-to-it-1", "given-to-it-2", "given-3", "given-4"}
    assert not secrets.known & {"8001", "5", "not-a-document"}
