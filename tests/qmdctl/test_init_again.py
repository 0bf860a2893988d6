"""`qmdctl init` over an .env that is there: what changes, what goes, and who is asked."""

from __future__ import annotations

import json
from pathlib import Path

from qmdctl.proposal import propose
from tests.qmdctl.conftest import Run
from tests.qmdctl.machines import card, machine
from tests.qmdctl.test_init import clone, values

__all__ = ["clone"]


def test_generation_here_again_takes_the_other_server_away(qmdctl: Run, clone: Path) -> None:
    qmdctl("-C", str(clone), "init", "--cpu", "--generation-url", "http://other:11434")
    assert qmdctl("-C", str(clone), "init", "--cpu", "--yes").returncode == 0
    written = values(clone)
    assert written["COMPOSE_PROFILES"] == "generation"
    assert written["GENERATION_URL"] == "http://vllm:8000"


def test_the_revision_of_another_model_goes_with_it(qmdctl: Run, clone: Path) -> None:
    commits = {"EMBED_REVISION": "1" * 40, "RERANK_REVISION": "2" * 40}
    models = {"EMBED_MODEL": "Qwen/Qwen3-Embedding-4B", "RERANK_MODEL": "Qwen/Qwen3-Reranker-0.6B"}
    (clone / ".env").write_text("".join(f"{key}={value}\n" for key, value in {**models, **commits}.items()))
    assert qmdctl("-C", str(clone), "init", "--cpu", "--yes").returncode == 0
    assert {key: values(clone).get(key) for key in commits} == {"EMBED_REVISION": None, "RERANK_REVISION": "2" * 40}
    assert qmdctl("-C", str(clone), "init", "--rerank-model", "BAAI/bge-reranker-base", "--yes").returncode == 0
    assert "RERANK_REVISION" not in values(clone)


def test_the_gpu_of_another_machine_is_forgotten(tmp_path: Path) -> None:
    hardware = machine(tmp_path, card("NVIDIA GeForce RTX 4090", 24_564))
    proposal = propose(hardware, "24", cpu=None, chosen={}, before={"VLLM_GPU": "1", "EMBED_GPU": "0"})
    assert "VLLM_GPU" in proposal.cleared
    assert "EMBED_GPU" not in proposal.cleared


def test_an_existing_env_is_changed_only_after_its_difference_was_agreed_to(qmdctl: Run, clone: Path) -> None:
    (clone / ".env").write_text("# mine\nEMBED_MODEL=my/own\nEMBED_PORT=9001\nMY_TOKEN=very-secret\n")
    before = (clone / ".env").read_text()
    done = qmdctl("-C", str(clone), "init", "--cpu")
    assert done.returncode == 2
    assert "-EMBED_MODEL=my/own" in done.stderr
    assert "+EMBED_MODEL=Qwen/Qwen3-Embedding-0.6B" in done.stderr
    assert "--yes" in done.stderr
    assert "very-secret" not in done.stderr
    assert (clone / ".env").read_text() == before
    assert qmdctl("-C", str(clone), "init", "--cpu", "--yes").returncode == 0
    written = values(clone)
    assert (written["EMBED_PORT"], written["MY_TOKEN"]) == ("9001", "very-secret")
    assert (clone / ".env").read_text().startswith("# mine\n")
    again = json.loads(qmdctl("-C", str(clone), "init", "--cpu", "--json").stdout)
    assert (again["changed"], again["written"]) == (False, [])


def test_another_preset_takes_the_keys_of_the_first_away(qmdctl: Run, clone: Path) -> None:
    qmdctl("-C", str(clone), "init", "--preset", "24")
    assert values(clone)["EMBED_MEMORY_GB"] == "11.5"
    qmdctl("-C", str(clone), "init", "--preset", "cpu", "--yes")
    assert "EMBED_MEMORY_GB" not in values(clone)
