"""What `qmdctl migrate` reads: systemctl's output, command lines of vLLM, serve configs, Hugging Face caches. FAKE: systemctl."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from qmdctl.engine import PROJECT_LABEL, SERVICE_LABEL
from qmdctl.errors import MissingError
from qmdctl.native.containers import ours
from qmdctl.native.containers import parse as parse_container
from qmdctl.native.found import ask, program_default
from qmdctl.native.tailscale import entries, find_serving, leads_to
from qmdctl.native.units import Manager, environment_file, find_units, parse
from qmdctl.native.vllm_options import translate
from qmdctl.native.weights import cache_folder, find_caches
from qmdctl.process import Completed
from qmdctl.redaction.command_lines import command, redacted, value
from tests.support.native import Native, service

# As systemd 252 prints it; the command line of a unit has no quotes there.
SHOWN = """ExecStart={{ path=/srv/qmd/.venv/bin/uvicorn ; argv[]=/srv/qmd/.venv/bin/uvicorn embed_rerank:app --host 0.0.0.0 --port \
${{PORT}} ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }}
Environment=PATH=/srv/qmd/.venv/bin:/usr/bin MAX_BATCH_SIZE=32 "NOTE=two words" PORT=8001
EnvironmentFiles={file} (ignore_errors=yes)
EnvironmentFiles=/no/such (ignore_errors=yes)
User=ada
WorkingDirectory=!/srv/qmd
LoadState=loaded
ActiveState=active
FragmentPath={path}
UnitFileState=enabled
"""


def test_a_unit_as_systemctl_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "embed.env"
    file.write_text('# models\nEMBED_MODEL="nomic-ai/nomic-embed-text-v1.5"\nMAX_BATCH_SIZE=16\n; PORT=1\n')
    real = tmp_path / "server/qmd-embed.service"
    real.parent.mkdir()
    real.touch()
    link = tmp_path / "qmd-embed.service"
    link.symlink_to(real)
    unit = parse("qmd-embed", Manager(), SHOWN.format(file=file, path=link))
    assert unit is not None
    assert (unit.active, unit.enabled, unit.user, unit.working_directory) == (True, True, "ada", "/srv/qmd")
    assert unit.environment["EMBED_MODEL"] == "nomic-ai/nomic-embed-text-v1.5"
    assert unit.environment["MAX_BATCH_SIZE"] == "16", "a file wins over Environment="
    assert unit.environment["NOTE"] == "two words"
    assert (unit.option("--port"), unit.option("--host")) == ("8001", "0.0.0.0")
    assert unit.unreadable == ("/no/such",)
    assert unit.linked == str(real)


@pytest.mark.parametrize("text", ["LoadState=not-found\nActiveState=inactive\nFragmentPath=\n", ""])
def test_no_such_unit(text: str) -> None:
    assert parse("qmd-embed", Manager(), text) is None


def test_environment_files_as_systemd_reads_them() -> None:
    assert environment_file("A=1\n  B='x y'\n#C=2\nD=a b\nno line\nE=") == {"A": "1", "B": "x y", "D": "a b", "E": ""}


@pytest.mark.parametrize(
    ("done", "problem"),
    [
        (MissingError("systemctl cannot be run"), "there is no systemctl"),
        (
            Completed((), 1, "", "System has not been booted with systemd as init system (PID 1). Can't operate."),
            "systemd does not run here",
        ),
        (Completed((), 1, "", "Failed to connect to bus: Host is down"), "systemd does not run here"),
        (Completed((), 1, "", "out of memory"), "systemctl does not answer: out of memory"),
    ],
)
def test_a_machine_without_systemd(done: Completed | MissingError, problem: str) -> None:
    def run(*arguments: object, **options: object) -> Completed:
        if isinstance(done, MissingError):
            raise done
        return done

    units, said = find_units(run)
    assert units == []
    assert said.startswith(problem)


def test_the_callers_own_manager_is_asked_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = Native(tmp_path)
    native.embed_unit(8001, manager="user")
    monkeypatch.setenv("PATH", native.path)
    monkeypatch.setenv("SUDO_USER", "ada")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    units, problem = find_units()
    assert (problem, [unit.manager for unit in units]) == ("", [Manager("ada")])
    assert native.calls()[-1].startswith("systemctl --user --machine=ada@.host show")
    monkeypatch.setattr("os.geteuid", lambda: 65_534)
    assert Manager("ada").command("stop", "x") == ["systemctl", "--user", "stop", "x"]


@pytest.mark.parametrize(
    ("command", "model", "values"),
    [
        (["vllm", "serve", "Qwen/Qwen3-4B"], "Qwen/Qwen3-4B", {}),
        (
            ["/opt/nvidia/nvidia_entrypoint.sh", "vllm", "serve", "Qwen/Qwen3-1.7B", "--gpu-memory-utilization", "0.12", "--enforce-eager"],
            "Qwen/Qwen3-1.7B",
            {"VLLM_GPU_MEMORY_UTILIZATION": "0.12", "VLLM_KV_CACHE_GB": "auto", "VLLM_ENFORCE_EAGER": "true"},
        ),
        (
            ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model=a/b", "--max_model_len", "8k", "--max-num-seqs=4"],
            "a/b",
            {"VLLM_MAX_MODEL_LEN": "8000", "VLLM_MAX_NUM_SEQS": "4"},
        ),
        (
            ["bash", "-c", "vllm serve a/b --gpu-memory-utilization=0.3 --kv-cache-memory-bytes 2G --dtype bfloat16 --revision main"],
            "a/b",
            {
                "VLLM_GPU_MEMORY_UTILIZATION": "0.3",
                "VLLM_KV_CACHE_GB": "2.14748",
                "VLLM_DTYPE": "bfloat16",
                "VLLM_REVISION": "main",
            },
        ),
        (
            ["vllm", "serve", "a/b", "-tp", "2", "--quantization", "awq", "--trust-remote-code"],
            "a/b",
            {"VLLM_EXTRA_ARGS": "--tensor-parallel-size 2 --quantization awq --trust-remote-code"},
        ),
        (["vllm", "serve", "--port", "8000", "--enforce-eager", "a/b"], "a/b", {"VLLM_ENFORCE_EAGER": "true"}),
        (["vllm", "serve", "-tp=2", "a/b", "--seed", "-1"], "a/b", {"VLLM_EXTRA_ARGS": "--tensor-parallel-size 2 --seed -1"}),
    ],
)
def test_command_lines_of_vllm(command: list[str], model: str, values: dict[str, str]) -> None:
    serving = translate(command)
    assert (serving.found, serving.model, serving.values, serving.left) == (True, model, values, ())


def test_what_has_no_counterpart_is_named() -> None:
    serving = translate(
        ["vllm", "serve", "a/b", "--port", "9000", "--api-key", "secret", "--chat-template", "/x.jinja", "--max-model-len", "?"]
    )
    assert (serving.port, serving.left) == (9000, ("--api-key", "--chat-template /x.jinja", "--max-model-len '?'"))
    assert translate(["vllm", "serve", "a/b", "-O3", "-O.x=1", "-dp", "2", "--seed", "1", "c", "d"]).left == (
        "-O3",
        "-O.x=1",
        "-dp 2",
        "c d",
    )
    assert translate(["vllm", "serve", "a/b", "--port", "8000", "--model", "c/d"]).model == "a/b"
    assert not translate(["sleep", "infinity"]).found
    assert not translate(["bash", "-c", "vllm serve 'unclosed"]).found


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--api-key", "S1", "S2", "--api-key=S3", "a/b"], ["--api-key", "…", "…", "--api-key=…", "a/b"]),
        (["--hf-token", "-S", "--hf_token=S"], ["--hf-token", "…", "--hf_token=…"]),
        (["-e", "HF_TOKEN=S", "-eAPI_KEY=S", "--env=DB_PASSWORD=S S"], ["-e", "HF_TOKEN=…", "-eAPI_KEY=…", "--env=DB_PASSWORD=…"]),
        (["-e", "HTTPS_PROXY=http://u:S@S@proxy:3128/x"], ["-e", "HTTPS_PROXY=http://…@proxy:3128/x"]),
        (["-c", "HF_TOKEN='S S' vllm serve a/b --api-key S S --port 1"], ["-c", "HF_TOKEN=… vllm serve a/b --api-key … --port 1"]),
        (["--tokenizer", "a/b", "--max-num-batched-tokens", "8"], ["--tokenizer", "a/b", "--max-num-batched-tokens", "8"]),
        (["--x", "hf_abcdefghijkl"], ["--x", "…"]),
    ],
)
def test_secrets_are_not_shown(words: list[str], shown: list[str]) -> None:
    assert redacted(words) == shown


def test_a_units_secrets_are_not_shown() -> None:
    words = ("docker", "run", "-e", "HF_TOKEN=hf_abcdefgh", "vllm", "serve", "a/b", "--hf-token", "hf_abcdefgh", "--api-key", "hf_abcdefgh")
    unit = parse("qmd-vllm", Manager(), f"LoadState=loaded\nFragmentPath=/x\nExecStart={{ argv[]={' '.join(words)} ; ignore_errors=no }}")
    assert unit is not None
    assert "hf_abcdefgh" not in str(unit.payload())
    assert translate(words).left == ("--hf-token", "--api-key")
    assert value("HTTPS_PROXY", "http://u:p@proxy:1") == "http://…@proxy:1"
    assert value("VLLM_EXTRA_ARGS", "--api-key x --seed 1") == "--api-key … --seed 1"
    assert command(["--seed", "1"]) == "--seed 1"


def test_a_container_as_docker_inspects_it() -> None:
    one = parse_container(
        {
            "Name": "/qmd-vllm",
            "Id": "ab" * 32,
            "Config": {"Image": "vllm:1", "Entrypoint": None, "Cmd": ["vllm", "serve", "a/b"], "Env": ["HF_HOME=/data/hf"], "Labels": None},
            "HostConfig": {
                "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
                "PortBindings": {"8000/tcp": [{"HostIp": "", "HostPort": "8010"}], "1/tcp": None},
                "DeviceRequests": [{"DeviceIDs": ["1"]}],
            },
            "State": {"Running": True, "Status": "running"},
            "Mounts": [{"Type": "bind", "Source": "/srv/data", "Destination": "/data"}],
        }
    )
    assert (one.restart, one.ports, one.gpus) == ("on-failure:3", {"8000/tcp": ("", 8010)}, ("1",))
    assert one.cache() == "/srv/data/hf"


@pytest.mark.parametrize(
    ("labels", "own"),
    [
        (None, False),
        ({PROJECT_LABEL: "mine", SERVICE_LABEL: "generator"}, False),
        ({PROJECT_LABEL: "qmd", SERVICE_LABEL: "x"}, True),
        ({PROJECT_LABEL: "other", SERVICE_LABEL: "vllm"}, True),
        ({PROJECT_LABEL: "other", SERVICE_LABEL: "ts-vllm"}, True),
    ],
)
def test_containers_of_the_stack_are_not_the_seeds(labels: dict[str, str] | None, own: bool) -> None:
    assert ours({"Config": {"Labels": labels}}, "qmd", Path("/srv/qmd")) is own


def test_a_serve_config() -> None:
    config = {
        "TCP": {"443": {"HTTPS": True}, "80": {"HTTP": True}, "5000": {"TCPForward": "localhost:8000", "TerminateTLS": "x"}},
        "Web": {
            "spark.t.ts.net:443": {"Handlers": {"/": {"Proxy": "http://127.0.0.1:8001"}, "/docs": {"Path": "/srv"}}},
            "spark.t.ts.net:80": {"Handlers": {"/v": {"Proxy": "127.0.0.1:8000"}}},
        },
        "AllowFunnel": {"spark.t.ts.net:443": True},
        "Foreground": {"session": {}},
    }
    found = {(entry.kind, entry.port, entry.path): entry for entry in entries(config)}
    assert set(found) == {("https", 443, "/"), ("http", 80, "/v"), ("tls-terminated-tcp", 5000, "/")}
    assert found["https", 443, "/"].funnel
    assert found["http", 80, "/v"].off() == ["tailscale", "serve", "--http=80", "--set-path=/v", "off"]
    assert found["tls-terminated-tcp", 5000, "/"].command()[2:] == ["--bg", "--tls-terminated-tcp=5000", "tcp://localhost:8000"]
    (entry,) = entries(service("qmd-embed", 8001), "svc:qmd-embed")
    made = ["tailscale", "serve", "--service=svc:qmd-embed", "--bg", "--https=443", "http://127.0.0.1:8001"]
    assert entry.command() == made


@pytest.mark.parametrize(
    ("target", "leads"),
    [
        ("http://127.0.0.1:8001", True),
        ("localhost:8001", True),
        ("tcp://127.0.0.1:8001", True),
        ("http://10.0.0.1:8001", False),
        ("http://127.0.0.1:80", False),
        ("http://127.0.0.1:x", False),
        ("/srv/www", False),
    ],
)
def test_where_a_target_leads(target: str, leads: bool) -> None:
    assert leads_to(target, {8001}) is leads


def test_a_tailscale_that_does_not_answer() -> None:
    def run(*arguments: object, **options: object) -> Completed:
        return Completed((), 1, "", "failed to connect to local tailscaled; it doesn't appear to be running")

    assert "doesn't appear to be running" in find_serving({}, run).problem


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, "/home/ada/.cache/huggingface"),
        ({"HF_HOME": "/srv/hf"}, "/srv/hf"),
        ({"HF_HUB_CACHE": "/srv/hf/hub", "HF_HOME": "/x"}, "/srv/hf"),
        ({"HF_HUB_CACHE": "/srv/models"}, None),
        ({"XDG_CACHE_HOME": "~/c"}, "/home/ada/c/huggingface"),
        ({"HOME": "/root"}, "/root/.cache/huggingface"),
    ],
)
def test_where_a_cache_is(environment: dict[str, str], folder: str | None) -> None:
    assert cache_folder(environment, Path("/home/ada")) == (Path(folder) if folder else None)


def test_weights_are_counted_once_and_the_fullest_cache_is_first(tmp_path: Path) -> None:
    native, other = Native(tmp_path / "a"), Native(tmp_path / "b")
    native.model("a/embed", 100)
    other.model("a/embed", 100)
    other.model("a/generate", 50)
    (native.folder / "link").symlink_to(native.cache)
    candidates = [(native.cache, "one"), (native.folder / "link", "the same"), (other.cache, "two"), (tmp_path / "none", "none")]
    caches = find_caches(candidates, ["a/embed", "a/generate", "a/embed"])
    assert [(cache.origin, cache.models) for cache in caches] == [("two", {"a/embed": 100, "a/generate": 50}), ("one", {"a/embed": 100})]
    assert caches[0].uid == os.getuid()


def test_the_defaults_of_the_seeds_program(tmp_path: Path) -> None:
    program = tmp_path / "embed_rerank.py"
    program.write_text('EMBED_MODEL = os.environ.get("EMBED_MODEL", "nomic-ai/nomic-embed-text-v1.5")\n')
    assert program_default(program, "EMBED_MODEL") == "nomic-ai/nomic-embed-text-v1.5"
    assert program_default(program, "RERANK_MODEL") == ""
    assert program_default(tmp_path / "none", "EMBED_MODEL") == ""


@pytest.mark.parametrize(
    ("body", "answer"), [(b'{"status":"ok","models":{"embed":"a/b"}}', {"embed": "a/b"}), (b"[]", None), (b"<html>", None)]
)
def test_the_service_that_runs_is_asked(body: bytes, answer: dict[str, str] | None) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        log_message: Callable[..., None] = lambda *_: None

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert ask(server.server_port).get("models") == answer
        server.shutdown()
    assert ask(server.server_port) == {}
