"""`qmdctl scale`: its files are held to Docker Compose, its options to the true vLLM; nothing was run on two boxes."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qmdctl import env_file
from qmdctl.checks import Context, memory
from qmdctl.errors import ConfigurationError, MissingError
from qmdctl.models.known import model_config
from qmdctl.models.plan import GB, GIB, Plan
from qmdctl.project import Project
from qmdctl.scale.boxes import make_boxes
from qmdctl.scale.memory import read_model, share_out
from qmdctl.scale.render import vllm_options
from qmdctl.settings import load_settings
from tests.qmdctl.conftest import Run
from tests.qmdctl.machines import SPARK, machine
from tests.support.qmdctl_cli import docker
from tests.support.service import ROOT
from tests.support.stack_images import need_engine, vllm_image

LLAMA_70B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
LARGE = "meta-llama/Llama-3.3-70B-Instruct"
HEAD, WORKER, CABLE = "192.168.100.10", "192.168.100.11", "enp1s0f1np1"
ADDRESSES = ("--head", HEAD, "--worker", WORKER, "--interface", CABLE)
Render = Callable[..., dict[str, Any]]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_70B))
    return path


@pytest.fixture
def render(qmdctl: Run, config: Path) -> Render:
    def run(*arguments: str) -> dict[str, Any]:
        done = qmdctl("scale", "--json", *ADDRESSES, "--model", LARGE, "--config", str(config), *arguments)
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    return run


def compose(folder: Path, files: dict[str, str], profiles: str) -> dict[str, Any]:
    """What Docker Compose makes of a box's files beside the project's own."""
    folder.mkdir()
    for name in ("compose.yaml", "secrets", "vllm", "tailscale"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    (folder / "compose.scale.yaml").write_text(files["compose.scale.yaml"])
    lines = f"COMPOSE_PROFILES={profiles}\n{files['env.scale']}" if profiles else files["env.scale"]
    (folder / ".env").write_text(lines)
    env_file.read(folder / ".env").check()  # qmdctl reads the same file
    command = ["docker", "compose", "config", "--format", "json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def options(service: dict[str, Any]) -> list[str]:
    return shlex.split(service["environment"]["QMD_EXTRA_ARGS"])


def test_both_boxes_as_compose_sees_them(render: Render, tmp_path: Path) -> None:
    report = render("--revision", "abc123")
    head = compose(tmp_path / "head", report["boxes"]["head"]["files"], "generation,tailnet")["services"]
    worker = compose(tmp_path / "worker", report["boxes"]["worker"]["files"], "")["services"]
    assert set(head) == {"embed", "vllm", "ts-embed", "ts-vllm"} and set(worker) == {"vllm"}
    for vllm, address in ((head["vllm"], HEAD), (worker["vllm"], WORKER)):
        assert vllm["network_mode"] == "host" and not vllm.get("ports") and not vllm.get("networks")
        assert vllm["entrypoint"] == ["python3", "/qmd/start.py"]
        assert (
            vllm["devices"][0]["source"] == "/dev/infiniband"
            if isinstance(vllm["devices"][0], dict)
            else "/dev/infiniband" in vllm["devices"][0]
        )
        environment = vllm["environment"]
        assert environment["VLLM_HOST_IP"] == address and environment["MASTER_ADDR"] == HEAD
        assert {environment[f"{name}_SOCKET_IFNAME"] for name in ("NCCL", "GLOO", "TP")} == {environment["UCX_NET_DEVICES"]} == {CABLE}
        assert environment["QMD_HEALTH_URL"] == f"http://{HEAD}:8000/health"
        assert environment["QMD_MODEL"] == LARGE and environment["QMD_REVISION"] == "abc123"
        assert not any(name.startswith("RAY_") for name in environment)
        # What the stack's own compose file secures stays so.
        assert vllm["read_only"] and vllm["cap_drop"] == ["ALL"] and vllm["user"] == "1000:1000"
    same = ("QMD_MODEL", "QMD_REVISION", "QMD_GPU_MEMORY_UTILIZATION", "QMD_KV_CACHE_GB", "QMD_MAX_MODEL_LEN", "QMD_MAX_NUM_SEQS")
    assert [head["vllm"]["environment"][key] for key in same] == [worker["vllm"]["environment"][key] for key in same]
    common = ["--host", HEAD, "--tensor-parallel-size", "2", "--distributed-executor-backend", "mp", "--nnodes", "2", "--node-rank"]
    master = ["--master-addr", HEAD, "--master-port", "29501"]
    assert options(head["vllm"]) == [*common, "0", *master]
    assert options(worker["vllm"]) == [*common, "1", *master, "--headless"]
    # Who looks for http://vllm:8000 finds it on the cable.
    assert head["embed"]["extra_hosts"] == head["ts-vllm"]["extra_hosts"] == [f"vllm={HEAD}"]
    assert head["vllm"]["environment"]["QMD_EMBED_HEALTH_URL"] == "http://127.0.0.1:8001/health"
    assert worker["vllm"]["environment"]["QMD_WAIT_FOR_EMBED_SECONDS"] == "0"


def test_with_ray_its_store_is_small_and_its_monitor_off(render: Render, tmp_path: Path) -> None:
    report = render("--way", "ray")
    for role, address in (("head", HEAD), ("worker", WORKER)):
        vllm = compose(tmp_path / role, report["boxes"][role]["files"], "generation" if role == "head" else "")["services"]["vllm"]
        shell, flag, command = vllm["entrypoint"]
        assert (shell, flag) == ("bash", "-c")
        assert f"--node-ip-address={address} --object-store-memory={GIB} --num-gpus=1" in command
        assert vllm["environment"]["RAY_memory_monitor_refresh_ms"] == "0"
        assert "--distributed-executor-backend ray" in vllm["environment"]["QMD_EXTRA_ARGS"] and "--nnodes" not in str(vllm)
        if role == "head":
            assert command.startswith("ray start --head --port=6379 --include-dashboard=false")
            assert command.endswith(" && exec python3 /qmd/start.py")
        else:
            assert command.startswith(f"python3 /qmd/start.py download && exec ray start --address={HEAD}:6379 --block")
    ray = [part for part in report["boxes"]["worker"]["parts"] if part["service"] == "ray"]
    assert ray and ray[0]["bytes"] > GIB


def test_embed_on_a_box_of_its_own(render: Render, tmp_path: Path) -> None:
    report = render("--embed-on", "none")
    head = compose(tmp_path / "head", report["boxes"]["head"]["files"], "generation,tailnet")["services"]
    assert set(head) == {"vllm", "ts-vllm"}
    assert head["ts-vllm"]["extra_hosts"] == [f"vllm={HEAD}"]
    assert "embed" not in report["boxes"]["head"]["memory"]


def test_the_steps_stand_in_order_and_name_both_boxes(render: Render) -> None:
    steps = render()["steps"]
    titles = [step["title"] for step in steps]
    order = ("The files", "The plan on the worker", "An address on it", "The way", "The firewall", "The settings", "The same image")
    places = [titles.index(title) for title in (*order, "The model on both disks", "The worker", "The head", "An answer")]
    assert places == sorted(places)
    assert [step["where"] for step in steps if step["title"] == "The firewall"] == ["head", "worker"]
    assert "--out plan" in steps[0]["see"]  # these files were only shown
    said = json.dumps(steps)
    assert all(word in said for word in ("netplan", "NET/IB", "NET/Socket", HEAD, WORKER, CABLE, "ufw"))
    rdma = next(step for step in steps if step["title"] == "The ranks speak RDMA")
    assert "grep" in rdma["commands"][0] and "NET/Socket" in rdma["see"]
    ray = [step["title"] for step in render("--way", "ray")["steps"]]
    assert ray.index("The head") < ray.index("The worker")


def test_an_interface_of_another_name_is_looked_at_on_its_own_box(render: Render) -> None:
    cable = [step for step in render("--worker-interface", "enp1s0f0np0")["steps"] if step["title"] == "The cable"]
    assert [(step["where"], step["commands"][1].split()[-1]) for step in cable] == [("head", CABLE), ("worker", "enp1s0f0np0")]
    assert [step["where"] for step in render()["steps"] if step["title"] == "The cable"] == ["both"]


@pytest.mark.parametrize("out", ["plan", "plans/two boxes"])
def test_the_steps_work_as_they_are_printed(qmdctl: Run, config: Path, tmp_path: Path, out: str) -> None:
    """Those that need no second machine and no root, typed into a shell in the project's folder of each box."""
    folders = {role: tmp_path / role for role in ("head", "worker")}
    for folder in folders.values():
        folder.mkdir()
    # The head was set up before, and its last line has no end; the worker is a fresh checkout.
    (folders["head"] / ".env").write_text(
        "COMPOSE_PROFILES=generation,tailnet\nVLLM_MODEL=old/model\nexport VLLM_KV_CACHE_GB=6\nEMBED_PORT=8001"
    )
    done = qmdctl("scale", "--json", *ADDRESSES, "--model", LARGE, "--config", str(config), "--out", out, cwd=folders["head"])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "The files" not in [step["title"] for step in report["steps"]]
    (copied,) = [step for step in report["steps"] if step["title"] == "The plan on the worker"]
    scp, recursive, source, target, *_ = shlex.split(copied["commands"][1], comments=True)
    assert (scp, recursive, target) == ("scp", "-r", "$worker:$PWD/")
    shutil.copytree(folders["head"] / source, folders["worker"] / Path(source).name)  # as scp does
    for role, folder in folders.items():
        for step in (step for step in report["steps"] if step["where"] == role and step["title"] in ("The settings", "An address on it")):
            if step["title"] == "An address on it":
                installed = shlex.split(step["commands"][0])[4]
                assert (folder / installed).read_text() == report["boxes"][role]["files"]["40-qmd-cable.yaml"]
                continue
            subprocess.run(["bash", "-ec", "\n".join(step["commands"])], cwd=folder, timeout=30, check=True)
        assert (folder / "compose.scale.yaml").read_text() == report["boxes"][role]["files"]["compose.scale.yaml"]
        values = env_file.read(folder / ".env").check().values
        assert values["VLLM_MODEL"] == LARGE and values["COMPOSE_FILE"] == "compose.yaml:compose.scale.yaml"
        assert values["COMPOSE_PROFILES"] == ("generation,tailnet" if role == "head" else "generation")
        assert values.get("EMBED_PORT") == ("8001" if role == "head" else None)


@pytest.mark.parametrize("role", ["head", "worker"])
def test_the_checks_of_each_box_count_what_is_on_it(render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    """`qmdctl doctor` with the files in force: the plan's figures, and no word of a model that is too large."""
    box = render()["boxes"][role]
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    (tmp_path / "compose.scale.yaml").write_text(box["files"]["compose.scale.yaml"])
    own = "COMPOSE_PROFILES=generation\n" if role == "head" else ""
    (tmp_path / ".env").write_text(own + box["files"]["env.scale"])
    settings = load_settings(Project(tmp_path, "test"), environment={})
    context = Context(settings, hardware=machine(tmp_path, SPARK, total_gib=119.7, available_gib=119.7))
    context.__dict__["_engine"] = MissingError("no engine", "start it")
    monkeypatch.setattr("qmdctl.checks.memory.model_config", lambda model, cache: LLAMA_70B if model == LARGE else model_config(model))
    (found,) = memory.check(context)
    assert found.level == "ok" and "one of 2 ranks" in found.why, found
    counted = float(found.what.split("vllm ")[1].split()[0])
    assert counted == pytest.approx(next(part["bytes"] for part in box["parts"] if part["service"] == "vllm") / GB, rel=0.01)
    assert ("embed" in found.what) == (role == "head")


def test_files_are_written_and_others_left_alone(qmdctl: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    out.mkdir()
    (out / "mine").write_text("kept")
    done = qmdctl("scale", *ADDRESSES, "--model", LARGE, "--config", str(config), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "never run on two boxes" in done.stdout
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    files = ("40-qmd-cable.yaml", "compose.scale.yaml", "env.scale")
    assert names == sorted(["STEPS.txt", "mine", *(f"{role}/{name}" for role in ("head", "worker") for name in files)])
    network = yaml.safe_load((out / "worker/40-qmd-cable.yaml").read_text())["network"]["ethernets"]
    assert network == {CABLE: {"addresses": [f"{WORKER}/24"], "dhcp4": False, "mtu": 9000}}
    for own in (".", "plans/.."):
        refused = qmdctl("scale", *ADDRESSES, "--model", LARGE, "--config", str(config), "--out", own)
        assert refused.returncode == 2 and "--out plan" in refused.stderr
    (tmp_path / "file").write_text("")
    refused = qmdctl("scale", *ADDRESSES, "--model", LARGE, "--config", str(config), "--out", str(tmp_path / "file"))
    assert refused.returncode == 2 and "--out" in refused.stderr


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"worker": HEAD}, "--worker"),
        ({"head": "8.8.8.8"}, "--head: 8.8.8.8 is not private"),
        ({"head": "100.101.1.2"}, "of the tailnet"),
        ({"head": "spark-1"}, "no IPv4 address"),
        ({"worker": "192.168.101.11"}, "not in the head's network"),
        ({"interface": "lo"}, "--interface"),
        ({"interface": "a b"}, "--interface"),
        ({"interface": "br-1234"}, "--interface"),
        ({"worker_interface": "tailscale0"}, "--worker-interface"),
        ({"way": "mpi"}, "--way"),
        ({"hca": "mlx5_0;reboot"}, "--hca"),
    ],
)
def test_addresses_that_cannot_be(changed: dict[str, str], named: str) -> None:
    given = {"head": HEAD, "worker": WORKER, "interface": CABLE, "way": "nnodes", **changed}
    with pytest.raises(ConfigurationError) as error:
        make_boxes(**given)
    assert named in error.value.message and error.value.fix


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--model", "unknown/model"), "--weights-gb"),
        (("--model", "Qwen/Qwen3-8B", "--embed-on", "worker"), "--embed-on"),
        (("--model", "Qwen/Qwen3-8B", "--config", "/nowhere/config.json"), "--config"),
        (("--model", "Qwen/Qwen3-8B", "--revision", "a;b"), "--revision"),
        (("--model", "Qwen/Qwen3-8B $(reboot)"), "--model"),
        (("--model", "unknown/model", "--weights-gb", "300", "--kv-bytes-per-token", "200000"), "does not fit on two"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field_and_fix(qmdctl: Run, arguments: tuple[str, ...], named: str) -> None:
    done = qmdctl("scale", "--json", *ADDRESSES, *arguments)
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"] == 2
    assert named in f"{document['error']} {document['fix']}" and document["fix"]


def shares(config: dict[str, Any], plan: Plan, memory_gib: float = 119.7, way: Any = "nnodes", embed: Any = None) -> list[Any]:
    return share_out(read_model("m", config, plan, None, None), plan, int(memory_gib * GIB), way, embed, model_config)


PLAN = Plan("Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Reranker-4B", "m")


def test_the_arithmetic_of_a_70b_model() -> None:
    """Llama 3 70B has 70.55e9 parameters (its model card: 70.6 B): 141.1 GB in bfloat16; 80 × 2 × 8 × 128 × 2 bytes of KV cache a token."""
    head, worker = shares(LLAMA_70B, PLAN, embed="head")
    parts = {part.service: part for part in head.place.parts}
    assert parts["vllm"].fixed_bytes == pytest.approx(70.55e9 + 1.1e9 + 2.2e9, rel=0.01)
    assert head.kv_cache_gb == worker.kv_cache_gb == pytest.approx(16 * 4096 * 80 * 2 * 8 * 128 * 2 / 2 / GB, abs=0.1)
    assert head.utilization == worker.utilization
    assert head.utilization * 119.7 * GIB >= parts["vllm"].fixed_bytes + head.kv_cache_gb * GB
    assert set(parts) == {"vllm", "embed"} and [part.service for part in worker.place.parts] == ["vllm"]
    with_ray = shares(LLAMA_70B, PLAN, way="ray")[0].place
    assert with_ray.planned_bytes - worker.place.planned_bytes == pytest.approx(GIB + 700_000_000)


def test_what_does_not_fit_names_a_figure_that_would() -> None:
    with pytest.raises(ConfigurationError) as error:
        shares(LLAMA_70B, PLAN, memory_gib=100, embed="head")
    assert "GB are missing" in error.value.message and "--embed-on none" in error.value.fix
    most = float(error.value.fix.split("--kv-cache-gb ")[1].split()[0])
    smaller = Plan(**{**PLAN.__dict__, "kv_cache_gb": most})
    assert shares(LLAMA_70B, smaller, memory_gib=100, embed="head")[0].kv_cache_gb == pytest.approx(most)


def test_heads_that_cannot_be_halved_are_refused() -> None:
    for change in ({"num_attention_heads": 9, "num_key_value_heads": 3}, {"num_key_value_heads": 5}):
        with pytest.raises(ConfigurationError, match="cannot halve"):
            shares({**LLAMA_70B, **change}, PLAN)
    # One key/value head is kept on both boxes: its cache is not halved.
    one = shares({**LLAMA_70B, "num_key_value_heads": 1, "head_dim": 128}, PLAN)[0]
    assert one.kv_cache_gb == pytest.approx(16 * 4096 * 80 * 2 * 128 * 2 / GB, abs=0.1)


def test_a_model_for_one_box_is_said_to_need_no_second(qmdctl: Run) -> None:
    done = qmdctl("scale", "--json", *ADDRESSES, "--model", "Qwen/Qwen3-8B")
    assert done.returncode == 0, done.stderr
    assert "fits on one box" in json.loads(done.stdout)["notes"][0]


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.12", "0.32"])
def test_the_options_are_vllms_own(version: str) -> None:
    """Both versions that the start script is tested with know every option that is rendered."""
    need_engine()
    told = docker("run", "--rm", "--network", "none", "--entrypoint", "vllm", vllm_image(version), "serve", "--help=all")
    rendered = {
        option
        for role in ("head", "worker")
        for way in ("nnodes", "ray")
        for option in vllm_options(make_boxes(HEAD, WORKER, CABLE, way), role)  # type: ignore[arg-type]
        if option.startswith("--")
    }
    assert len(rendered) == 8
    assert [option for option in sorted(rendered) if option not in told] == []
