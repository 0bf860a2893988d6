"""`qmdctl client` and `qmdctl test` as a user runs them, and docs/clients.md, whose blocks are what `client` prints."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmdctl.engine import Container, Engine
from qmdctl.errors import ConfigurationError
from qmdctl.laptop.box import names_of_box
from qmdctl.laptop.clients import check_variable, default_models, find_client, load_clients
from qmdctl.laptop.key import read_key
from qmdctl.laptop.models import Models, served_models
from qmdctl.laptop.names import Names
from qmdctl.tailnet.sidecar import MARK
from tests.qmdctl.conftest import Run
from tests.qmdctl.containers import container
from tests.qmdctl.projects import settings_of
from tests.qmdctl.test_client_index import BLOCK
from tests.qmdctl.test_laptop_names import EMBED, VLLM
from tests.support.laptop import SUFFIX, Answer, Authority, FakeStack, fake_tailscale, status
from tests.support.service import ROOT, ServiceProcess

DOCS = (ROOT / "docs/clients.md").read_text()
IN_DOCS = Names("https://qmd-embed.TAILNET.ts.net", "https://qmd-vllm.TAILNET.ts.net")  # there <tailnet>, which a shell would want quoted
CLIENTS = ["seed", "yudshj", "jawk", "unithejerk", "picassio", "qmdr", "lotl"]
BLOCKS = re.findall(r"^```(yaml|sh)\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)


@pytest.fixture
def stack() -> Iterator[FakeStack]:
    with FakeStack() as running:
        yield running


def test_the_table_has_the_clients_of_the_help(qmdctl: Run) -> None:
    assert list(load_clients()) == CLIENTS
    text = " ".join(qmdctl("client", "--help").stdout.split())
    assert all(name in text for name in CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
def test_the_docs_show_what_is_printed(name: str) -> None:
    client = find_client(name)
    printed = client.render(IN_DOCS, default_models()).replace("TAILNET", "<tailnet>")
    assert (client.format, printed) in BLOCKS
    assert f"qmdctl client --for {name}" in DOCS
    assert not re.search(r"@\w+@", printed)


def test_the_docs_show_the_single_address_form_too() -> None:
    printed = find_client("seed").render(Names(IN_DOCS.embed), default_models())
    assert ("yaml", printed.replace("TAILNET", "<tailnet>")) in BLOCKS


ODD = """a "b" 'c' $(echo x) `d` \\ #e: ${HOME}"""


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("model", [ODD, "null", "@embed@", "- x"])
def test_names_of_every_kind_come_out_as_they_are(name: str, model: str) -> None:
    client = find_client(name)
    text = client.render(Names("https://e.example"), Models(model, model, model))
    if client.format == "yaml":
        text = client.render(Names("https://e.example", "https://v.example"), Models(model, model, model))
        assert set(yaml.safe_load(text)["remote"]["models"].values()) == {model}
        return
    done = subprocess.run(["sh", "-c", text + "env"], env={}, capture_output=True, text=True, check=True)
    models = [line.split("=", 1)[1] for line in done.stdout.splitlines() if "_MODEL=" in line]
    assert set(models) == ({model} if models else set())


def test_a_served_name_with_control_characters_is_none() -> None:
    bad = "a\nexport X=1"
    wrong = {"/health": Answer(200, {"models": {"embed": bad, "rerank": "a\u001bb"}}), "/v1/models": Answer(200, {"data": [{"id": bad}]})}
    with FakeStack(wrong=wrong) as stack:
        assert set(served_models(Names(stack.url), default_models()).origins.values()) == {"default"}


@pytest.mark.parametrize("name", CLIENTS)
def test_shells_and_yaml_take_what_is_printed(name: str) -> None:
    names = Names(f"https://qmd-embed.{SUFFIX}", f"https://qmd-vllm.{SUFFIX}")
    client = find_client(name)
    text = client.render(names, Models("a/e", "a/r", "a/g"), "MY_KEY")
    if client.format == "yaml":
        assert yaml.safe_load(text)["remote"]["api_key"] == "${MY_KEY}"
        return
    done = subprocess.run(["sh", "-c", text + "env"], env={"MY_KEY": "k 1"}, capture_output=True, text=True, check=True)
    values = [line.split("=", 1)[1] for line in done.stdout.splitlines() if line.startswith(("QMD_", "LOTL_", "OPENAI_"))]
    assert "k 1" in values
    base = names.embed if name == "yudshj" else f"{names.embed}/v1"
    assert base in values
    assert name == "qmdr" or base.replace("embed", "vllm") in values


def test_served_models_go_before_the_projects_and_the_defaults(service: ServiceProcess, stack: FakeStack) -> None:
    models = served_models(Names(stack.url, stack.url), default_models())
    assert (models.embed, models.rerank) == ("a/embedder", "a/reranker")
    real = served_models(Names(service.url, stack.url), default_models())
    assert "minilm" in real.embed.lower()
    assert (real.generate, real.origins["generate"]) == ("a/writer", "served")
    nobody = served_models(Names("http://127.0.0.1:9", "http://127.0.0.1:9"), default_models())
    assert set(nobody.origins.values()) == {"default"}
    assert nobody.generate == "Qwen/Qwen3-4B"


def test_the_embed_services_list_tells_what_it_forwards_to() -> None:
    own = [{"id": name, "owned_by": "qmd", "root": root} for name, root in (("a/embedder", "a/embedder"), ("default", "a/embedder"))]
    listed = {"data": [*own, {"id": "a/reranker", "root": "a/reranker"}, {"id": "b/writer", "root": "b/writer"}]}
    with FakeStack(wrong={"/v1/models": Answer(200, listed)}) as stack:
        assert served_models(Names(stack.url), default_models()).generate == "b/writer"
    for data in (own, 7, True, {"id": "x"}):
        with FakeStack(wrong={"/v1/models": Answer(200, {"data": data})}) as stack:
            assert served_models(Names(stack.url), default_models()).origins["generate"] == "default"
    with FakeStack(wrong={"/v1/models": Answer(200, {"data": own})}) as stack:
        assert served_models(Names(stack.url), default_models()).origins["generate"] == "default"


def test_client_finds_the_names_and_prints_the_block(qmdctl: Run, tmp_path: Path) -> None:
    path = fake_tailscale(tmp_path / "bin", status(EMBED, VLLM))
    done = qmdctl("client", PATH=path)
    assert done.returncode == 0, done.stderr
    remote = yaml.safe_load(done.stdout)["remote"]
    assert (remote["url"], remote["generation_url"]) == (f"https://qmd-embed.{SUFFIX}", f"https://qmd-vllm.{SUFFIX}")
    assert "found on the tailnet" in done.stderr and "(default)" in done.stderr
    answer = json.loads(qmdctl("client", "--for", "jawk", "--json", PATH=path).stdout)
    assert answer["names"]["origins"] == {"embed": "found on the tailnet", "vllm": "found on the tailnet"}
    assert answer["models"]["embed"] == {"name": "Qwen/Qwen3-Embedding-4B", "origin": "default"}
    assert answer["text"].startswith("export QMD_EMBED_API_URL=")
    assert not (tmp_path / "state").exists()


def test_a_project_that_is_here_gives_names_and_models_and_is_not_remembered(qmdctl: Run, tmp_path: Path, folder: Path) -> None:
    (folder / ".env").write_text("EMBED_HOSTNAME=box\nEMBED_MODEL=b/e\n")
    path = fake_tailscale(tmp_path / "bin", status({**EMBED, "DNSName": f"box.{SUFFIX}.", "HostName": "box"}, VLLM))
    answer = json.loads(qmdctl("client", "--json", cwd=folder, PATH=path).stdout)
    assert answer["names"]["embed_url"] == f"https://box.{SUFFIX}"
    assert answer["models"]["embed"] == {"name": "b/e", "origin": "the project's EMBED_MODEL"}
    (folder / ".env").write_text("EMBED_MODLE=b/e\n")
    done = qmdctl("client", "--embed-url", "http://127.0.0.1:9", cwd=folder, PATH=path)
    assert done.returncode == 0
    assert "EMBED_MODLE is not known" in done.stderr
    assert not (tmp_path / "state").exists()
    assert qmdctl("--project", str(tmp_path), "client", "--embed-url", "http://127.0.0.1:9").returncode == 2


class Box:
    """FAKE engine: one sidecar that runs, and what it says of itself."""

    def __init__(self, state: str) -> None:
        own = {"DNSName": f"qmd-embed-2.{SUFFIX}."}
        self.status = {"BackendState": state, "Self": own, "CurrentTailnet": {"MagicDNSSuffix": SUFFIX}}

    def containers(self, project: str) -> dict[str, Container]:
        return {"ts-embed": container("ts-embed"), "ts-vllm": container("ts-vllm", state="exited")}

    def execute(self, container: Container, command: list[str]) -> str:
        return f"{MARK} status\n{json.dumps(self.status)}\n"


@pytest.mark.parametrize(
    ("state", "values", "names"),
    [
        ("Running", {"COMPOSE_PROFILES": "generation,tailnet"}, {"embed": f"qmd-embed-2.{SUFFIX}"}),
        ("Running", {"COMPOSE_PROFILES": "tailnet", "TAILNET_SERVICE": "1"}, {"embed": f"qmd-embed.{SUFFIX}"}),
        ("NeedsLogin", {"COMPOSE_PROFILES": "tailnet"}, {}),
        ("Running", {"COMPOSE_PROFILES": "generation"}, {}),
    ],
)
def test_on_the_box_the_sidecars_tell_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, values: dict[str, str], names: dict[str, str]
) -> None:
    monkeypatch.setattr(Engine, "connect", lambda: Box(state))
    assert names_of_box(settings_of(tmp_path, values)) == names


def test_write_shows_the_difference_asks_and_keeps_the_rest(qmdctl: Run, tmp_path: Path, stack: FakeStack) -> None:
    config = tmp_path / "config"
    arguments = ["client", "--write", "--embed-url", stack.url, "--generate-url", stack.url.replace("127.0.0.1", "localhost")]
    environment = {"QMD_CONFIG_DIR": str(config)}
    done = qmdctl(*arguments, **environment)
    assert done.returncode == 2
    assert "--yes" in done.stderr and "+remote:" in done.stderr
    assert not config.exists()
    done = qmdctl(*arguments, "--yes", **environment)
    assert done.returncode == 0, done.stderr
    path = config / "index.yml"
    written = path.read_text()
    assert yaml.safe_load(written)["remote"]["models"] == {"embed": "a/embedder", "generate": "a/writer", "rerank": "a/reranker"}
    assert "api_key" not in written
    done = qmdctl(*arguments, "--json", **environment)  # nothing to change: nothing to agree to
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["changed"], answer["backup"]) == (0, False, None)
    assert [file.name for file in config.iterdir()] == ["index.yml"]
    mine = "# mine\n" + written.replace("a/embedder", "x/old") + "  api_key: sk-in-clear\n  other: 1\n"
    path.write_text(mine)
    done = qmdctl(*arguments, "--yes", "--json", **environment)
    assert "sk-in-clear" not in done.stdout + done.stderr
    assert "every document for pending" in done.stderr and "in clear" in done.stderr
    assert path.read_text() == mine.replace("x/old", "a/embedder")
    assert Path(json.loads(done.stdout)["backup"]).read_text() == mine
    done = qmdctl(*arguments, "--yes", "--key-env", "MY_KEY", **environment)
    assert yaml.safe_load(path.read_text())["remote"]["api_key"] == "${MY_KEY}"
    assert yaml.safe_load(path.read_text())["remote"]["other"] == 1


def test_write_wants_a_name_with_a_number_to_be_given(qmdctl: Run, tmp_path: Path, stack: FakeStack) -> None:
    path = fake_tailscale(tmp_path / "bin", status({**EMBED, "DNSName": f"qmd-embed-1.{SUFFIX}."}, VLLM))
    done = qmdctl("client", "--write", "--yes", PATH=path, QMD_CONFIG_DIR=str(tmp_path))
    assert done.returncode == 2
    assert f"--embed-url https://qmd-embed-1.{SUFFIX}" in done.stderr
    assert not (tmp_path / "index.yml").exists()
    done = qmdctl("client", "--write", "--yes", "--embed-url", stack.url, QMD_CONFIG_DIR=str(tmp_path))
    assert done.stdout.endswith(f"Next: qmdctl test --embed-url {stack.url}\n")


def test_write_with_one_address_leaves_no_other_in_force(qmdctl: Run, tmp_path: Path, stack: FakeStack) -> None:
    (tmp_path / "qmd").mkdir()
    path = tmp_path / "qmd" / "index.yml"
    path.write_text(BLOCK)
    done = qmdctl("client", "--write", "--yes", "--embed-url", stack.url, XDG_CONFIG_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    remote = yaml.safe_load(path.read_text())["remote"]
    assert {remote[key] for key in ("url", "embed_url", "generation_url")} == {stack.url}


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 130), ("\x03", 130)])
def test_on_a_terminal_it_asks(tmp_path: Path, stack: FakeStack, typed: str, code: int) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "qmdctl", "client", "--write", "--embed-url", stack.url]
    environment = {**os.environ, "QMD_CONFIG_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "NO_COLOR": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = ""
        while "[Y/n]" not in shown:
            shown += os.read(controller, 4096).decode()
        os.write(controller, typed.encode())
        assert process.wait(30) == code
    os.close(controller)
    assert "+remote:" in shown
    assert (tmp_path / "index.yml").exists() == (code == 0)


def test_usage_errors(qmdctl: Run, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        done = qmdctl("client", "--embed-url", "http://127.0.0.1:9", *arguments)
        assert done.returncode == 2
        return done.stderr

    assert "takes one of seed, yudshj" in refused("--for", "nobody")
    assert "qmdctl client --for jawk" in refused("--for", "jawk", "--write")
    said = refused("--key-env", "sk-1234")
    assert "not a key" in said and "sk-1234" not in said
    (tmp_path / "index.yml").write_text("remote: here\n")
    done = qmdctl("client", "--write", "--yes", "--embed-url", "http://127.0.0.1:9", QMD_CONFIG_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "remote is not a mapping" in done.stderr
    assert (tmp_path / "index.yml").read_text() == "remote: here\n"
    assert check_variable("QMD_KEY") == "QMD_KEY"


@pytest.mark.parametrize("arguments", [["test", "--timeout", "soon"], ["client", "--nothing"], ["tset"], ["client", "--for"]])
def test_what_typer_refuses_is_json_too(qmdctl: Run, arguments: list[str]) -> None:
    done = qmdctl(arguments[0], "--json", *arguments[1:])
    error = json.loads(done.stdout)
    assert done.returncode == error["exit_code"] == 2
    assert error["error"] and error["fix"].startswith("qmdctl") and error["fix"].endswith("--help")
    assert done.stderr
    assert qmdctl(*arguments).stdout == ""


def test_a_server_that_wants_a_key_gets_a_reference(qmdctl: Run) -> None:
    with FakeStack(key="sesame") as stack:
        answer = json.loads(qmdctl("client", "--embed-url", stack.url, "--json").stdout)
        assert answer["key_variable"] == "QMD_KEY"
        assert 'api_key: "${QMD_KEY}"' in answer["text"]
        answer = json.loads(qmdctl("client", "--embed-url", stack.url, "--json", QMD_API_KEY="sesame").stdout)
        assert answer["models"]["generate"] == {"name": "a/writer", "origin": "served"}
        assert 'api_key: "${QMD_KEY}"' in answer["text"] and "sesame" not in json.dumps(answer)


def test_a_key_that_the_file_has_stays_unless_another_is_named(qmdctl: Run, tmp_path: Path) -> None:
    path = tmp_path / "index.yml"
    path.write_text('remote:\n  api_key: "${MY_KEY}"\n')
    with FakeStack(key="sesame") as stack:
        arguments = ["client", "--write", "--yes", "--json", "--embed-url", stack.url]
        done = qmdctl(*arguments, QMD_CONFIG_DIR=str(tmp_path))
        assert json.loads(done.stdout)["key_variable"] is None
        remote = yaml.safe_load(path.read_text())["remote"]
        assert (remote["api_key"], remote["url"]) == ("${MY_KEY}", stack.url)
        qmdctl(*arguments, "--key-env", "OTHER", QMD_CONFIG_DIR=str(tmp_path))
        assert yaml.safe_load(path.read_text())["remote"]["api_key"] == "${OTHER}"
        path.write_text("remote:\n  api_key:\n")
        qmdctl(*arguments, QMD_CONFIG_DIR=str(tmp_path))
        assert yaml.safe_load(path.read_text())["remote"]["api_key"] == "${QMD_KEY}"


def test_test_runs_without_anything_else(qmdctl: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    with FakeStack(authority.issue("localhost"), key="sesame") as stack:
        arguments = ["test", "--embed-url", stack.url, "--generate-url", stack.url.replace("localhost", "LOCALHOST.")]
        environment = {
            "SSL_CERT_FILE": str(authority.file),
            "QMD_API_KEY": "sesame",
            "PATH": "/nowhere",
            "HTTPS_PROXY": "http://127.0.0.1:9",
        }
        done = qmdctl(*arguments, "--json", **environment)
        answer = json.loads(done.stdout)
        assert done.returncode == 0, done.stdout
        assert answer["ok"] and answer["first_broken"] is None
        assert answer["embedding_fingerprint"] == "f00d"
        assert answer["models"]["chat"] == "a/writer"
        assert {link["state"] for link in answer["links"]} == {"ok", "skipped"}
        assert all(link["detail"] for link in answer["links"])
        assert any("HTTPS_PROXY" in note for note in answer["notes"])
        (tmp_path / "key").write_text("# mine\nwrong\n")
        done = qmdctl("test", "--embed-url", stack.url, "--key-file", str(tmp_path / "key"), **environment)
    assert done.returncode == 1
    assert "The first broken link: embed, embedding: /v1/embeddings answered 401" in done.stdout
    assert "→ qmdctl test --key-file FILE" in done.stdout
    assert "sesame" not in done.stdout + done.stderr
    assert not (tmp_path / "state").exists()


def test_a_terminal_that_lacks_characters_gets_others(qmdctl: Run, stack: FakeStack) -> None:
    done = qmdctl("test", "--embed-url", stack.url, PATH="/nowhere", PYTHONIOENCODING="ascii")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


@pytest.mark.parametrize("seconds", ["inf", "nan", "0", "1e9"])
def test_a_time_limit_is_a_number_of_seconds(qmdctl: Run, seconds: str) -> None:
    done = qmdctl("test", "--embed-url", "http://127.0.0.1:9", "--timeout", seconds)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_test_takes_the_path_from_tailscale(qmdctl: Run, tmp_path: Path, stack: FakeStack) -> None:
    here: dict[str, Any] = {**EMBED, "DNSName": "localhost.", "TailscaleIPs": ["127.0.0.1", "::1"]}
    path = fake_tailscale(tmp_path / "bin", status(here, VLLM), "pong from qmd-embed (127.0.0.1) via DERP(fra) in 38ms\n")
    done = qmdctl("test", "--embed-url", stack.url.replace("127.0.0.1", "localhost"), "--json", PATH=path)
    links = {(link["service"], link["link"]): link for link in json.loads(done.stdout)["links"]}
    assert links["laptop", "tailscale"]["detail"] == f"1.102.3, 100.64.0.9 in {SUFFIX}"
    assert links["embed", "path"]["detail"] == "2 hops, through the relay fra, 38 ms"
    assert "UDP 41651" in links["embed", "path"]["fix"]
    done = qmdctl("test", "--embed-url", stack.url.replace("127.0.0.1", "localhost"), PATH=path)
    assert "! embed, path: 2 hops" in done.stdout


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\ufeff# of the box\nsha256:00\n\n the-key \n")
    assert read_key(file, {"QMD_API_KEY": "other"}) == "the-key"
    assert read_key(None, {"QMD_API_KEY": " other "}) == "other"
    assert read_key(None, {}) is None
    for content, words in (("sha256:00\n", "only digests"), ("two words\n", "printable ASCII"), ("schlüssel\n", "printable ASCII")):
        file.write_text(content)
        with pytest.raises(ConfigurationError, match=words):
            read_key(file, {})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_key(tmp_path / "none", {})
