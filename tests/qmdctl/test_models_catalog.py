"""What lies in the cache and may go, what fits in memory, and what a change makes useless."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from qmdctl.catalog.cached import Cache, Cached, Incomplete, Need, history_needs
from qmdctl.catalog.consequences import consequences
from qmdctl.catalog.fits import Memory, known_fits, role_of
from qmdctl.catalog.listing import as_text, differences, payload
from qmdctl.catalog.prune import plan
from qmdctl.catalog.roles import ROLES
from qmdctl.catalog.served import Served
from qmdctl.errors import ConfigurationError
from qmdctl.hardware import Hardware
from tests.qmdctl.contexts import gpu, machine
from tests.qmdctl.projects import settings_of

GB, GIB = 10**9, 1 << 30
A, B, C = "a" * 40, "b" * 40, "c" * 40
CACHE = Cache(
    "/models/hub",
    500 * GB,
    (
        Cached("org/embed", A, 8 * GB, 8 * GB, ("main",)),
        Cached("org/embed", B, 8 * GB, 1 * GB, (B,)),
        Cached("org/chat", C, 4 * GB, 4 * GB, ("main",)),
        Cached("else/where", C, 2 * GB, 2 * GB),
    ),
    (Incomplete("org/wanted", GB), Incomplete("org/given-up", 2 * GB)),
)
NEEDS = [Need("org/embed", B, "embed, served"), Need("org/wanted", None, "VLLM_MODEL in .env")]
SPARK = gpu("NVIDIA GB10", None)


def test_what_is_not_needed_goes_and_what_is_awaited_stays() -> None:
    pruning = plan(CACHE, NEEDS, [], shared=False)
    assert [one.name for one in pruning.revisions] == [f"org/embed@{A}", f"org/chat@{C}", f"else/where@{C}"]
    assert [one.model for one in pruning.incomplete] == ["org/given-up"], "the other one's download goes on from there"
    assert [(one.revision, why) for one, why in pruning.kept] == [(B, "embed, served")]
    assert pruning.bytes == 16 * GB
    assert "org/given-up" in pruning.as_table()


def test_in_a_shared_cache_only_what_the_record_knows_is_proposed() -> None:
    pruning = plan(CACHE, NEEDS, [], shared=True)
    assert [one.name for one in pruning.revisions] == [f"org/embed@{A}", f"org/chat@{C}"]
    assert pruning.incomplete == ()
    assert pruning.others == ("else/where", "org/given-up", "org/wanted")
    named = plan(CACHE, NEEDS, ["else/where"], shared=True)
    assert [one.name for one in named.revisions] == [f"else/where@{C}"]


@pytest.mark.parametrize(
    ("name", "words"), [("org/embed@bbbb", "is needed"), ("no/such", "is not in the cache"), ("org/chat@d", "is not in")]
)
def test_a_name_that_may_not_go_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        plan(CACHE, NEEDS, [name], shared=False)


def test_what_a_rollback_needs_is_kept(tmp_path: Path) -> None:
    record = tmp_path / ".qmdctl/history/3/record.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"models": {"EMBED_MODEL": f"org/embed@{A}", "RERANK_MODEL": ""}}))
    half = tmp_path / ".qmdctl/history/4/record.json"
    half.parent.mkdir()
    half.write_text('{"models": {"EMBED')
    needs = history_needs(tmp_path)
    assert needs == [Need("org/embed", A, "for a rollback to 3", 0)]
    assert f"org/embed@{A}" not in [one.name for one in plan(CACHE, needs, [], shared=False).revisions]


def recorded(folder: Path, *models: str) -> list[Need]:
    for number, model in enumerate(models, 1):
        record = folder / f".qmdctl/history/{number:04}/record.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"models": {"EMBED_MODEL": model}}))
    return history_needs(folder)


def test_a_model_that_rollbacks_alone_need_goes_after_the_history(tmp_path: Path) -> None:
    """As after two changes with `models use`: records 1 and 2 are of the old model, 3 and 4 of others, 4 is what runs."""
    needs = recorded(tmp_path, f"org/embed@{A}", f"org/embed@{A}", "org/chat", f"org/embed@{B}")
    needs.append(Need("org/embed", B, "embed, served"))
    with pytest.raises(ConfigurationError, match=r"needed \(for a rollback to 0001, for a rollback to 0002\)") as caught:
        plan(CACHE, needs, [f"org/embed@{A}"], shared=False)
    assert caught.value.fix.startswith("qmdctl history prune --keep 2, then again")
    for kept in ("2", "1"):  # as if those records had been pruned
        left = [need for need in needs if need.newer is None or need.newer < int(kept)]
        assert f"org/embed@{A}" in [one.name for one in plan(CACHE, left, [f"org/embed@{A}"], shared=False).revisions]
    with pytest.raises(ConfigurationError) as served:
        plan(CACHE, needs, [f"org/embed@{B}"], shared=False)
    assert served.value.fix.startswith("qmdctl models use")
    with pytest.raises(ConfigurationError) as last:
        plan(CACHE, needs[:-1], [f"org/embed@{B}"], shared=False)
    assert last.value.fix.startswith("qmdctl up"), "no pruning of the history removes the last record"


def test_where_nothing_goes_it_says_why_and_what_would_free_it(tmp_path: Path) -> None:
    cache = Cache("/models/hub", GB, CACHE.revisions[:2])
    needs = [*recorded(tmp_path, f"org/embed@{A}", f"org/embed@{B}"), Need("org/embed", B, "embed, served")]
    pruning = plan(cache, needs, [], shared=False)
    assert pruning.empty
    text = pruning.reasons()
    assert "aaaaaaaaaaaa  8.0 GB  for a rollback to 0001" in text
    assert "for a rollback to 0002, embed, served" in text
    assert text.endswith("may go after: qmdctl history prune --keep 1")
    assert pruning.payload()["forget"] == "qmdctl history prune --keep 1"
    pruning = plan(cache, [Need("org/embed", None, "EMBED_MODEL in .env")], [], shared=False)
    assert "history" not in pruning.reasons() and "EMBED_MODEL in .env" in pruning.reasons()
    assert plan(Cache("/models/hub", GB), needs, [], shared=False).reasons() == "Nothing to remove."


def memory(tmp_path: Path, hardware: Hardware, values: Mapping[str, str] | None = None, running: tuple[str, ...] = ()) -> Memory:
    return Memory(settings_of(tmp_path, values), hardware, None, running)


def test_which_known_models_fit_a_card_of_16_gb(tmp_path: Path) -> None:
    small = {"EMBED_MODEL": "Qwen/Qwen3-Embedding-0.6B", "RERANK_MODEL": "Qwen/Qwen3-Reranker-0.6B"}
    rows = known_fits(
        memory(tmp_path, machine(gpu(memory=16 * GIB)), {**small, "VLLM_GPU_MEMORY_UTILIZATION": "0.6", "VLLM_KV_CACHE_GB": "1"}),
        list(ROLES),
    )
    fits = {model: fit for _, model, _, fit in rows}
    weights = {model: size for _, model, size, _ in rows}
    assert fits["Qwen/Qwen3-4B"].fits is True
    assert fits["Qwen/Qwen3-8B"].fits is False, fits["Qwen/Qwen3-8B"]
    assert fits["Qwen/Qwen3-Embedding-4B"].planned_bytes is not None
    assert weights["Qwen/Qwen3-8B"] == pytest.approx(16.4 * GB, rel=0.02)
    assert [role.name for role, *_ in rows] == sorted((role.name for role, *_ in rows), key=list(ROLES).index)
    assert (role_of("BAAI/bge-reranker-base").name, role_of("BAAI/bge-base-en-v1.5").name) == ("rerank", "embed")


def test_what_the_stack_holds_now_counts_as_free(tmp_path: Path) -> None:
    """24 GB are left on a Spark of 120 beside the running stack: the same models again fit, three times as much does not."""
    hardware = Hardware("Linux", "arm64", 120 * GIB, 24 * GIB, False, (SPARK,))
    embed, vllm = ROLES["embed"], ROLES["generate"]
    alone = memory(tmp_path, hardware).judge({embed: "Qwen/Qwen3-Embedding-4B"})
    assert alone.fits is False
    running = memory(tmp_path, hardware, running=("embed", "vllm")).judge({embed: "Qwen/Qwen3-Embedding-4B"})
    assert running.fits is True
    large = memory(tmp_path, hardware, {"VLLM_KV_CACHE_GB": ""}, ("embed", "vllm"))
    config = {"model_type": "qwen3", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
              "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "architectures": ["Qwen3ForCausalLM"]}  # fmt: skip
    too_large = large.judge({vllm: "org/70b"}, {"org/70b": config})
    assert too_large.fits is False
    assert too_large.sentence
    unknown = large.judge({vllm: "org/new"}, {"org/new": {"model_type": "new"}})
    assert unknown.fits is None
    assert "cannot be computed" in unknown.sentence


def test_the_listing_says_what_is_served_kept_and_fits(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"EMBED_MODEL": "org/else"})
    served = {
        "embed": Served(ROLES["embed"], "org/embed", "ok", B, "bfloat16", "0123456789ab", "http://127.0.0.1:8001"),
        "generate": Served(ROLES["generate"], "", "elsewhere", url="http://other:11434"),
    }
    fits = known_fits(Memory(settings, machine(memory=120 * GIB), None, []), ["embed"])
    text = as_text(served, CACHE, NEEDS, fits)
    assert "org/embed" in text and "0123456789ab" in text and "bbbbbbbbbbbb  8.0 GB  embed, served" in text
    assert "fits: " in text
    data = payload(served, CACHE, NEEDS, fits, differences(settings, served))
    assert data["cache"]["revisions"][1]["needed"] == ["embed, served"]
    assert {one["role"] for one in data["known"]} == {"embed"}
    (note,) = data["notes"]
    assert "org/embed is served, and .env says EMBED_MODEL=org/else" in note


def test_what_each_change_makes_useless() -> None:
    def commands(role: str, before: str | None, after: str | None, cosine: bool = False) -> tuple[str, ...]:
        return consequences(role, before, after, cosine_before=cosine, cosine_after=cosine).commands

    assert commands("embed", "one", "two") == ("qmd embed -f",)
    assert commands("embed", "one", "two", cosine=True) == ("qmd embed -f", "qmd cleanup")
    assert commands("embed", "one", "one", cosine=True) == ()
    assert commands("embed", None, "two") == ("qmd embed -f",), "what is not known is not taken for equal"
    assert commands("rerank", "one", "one") == ("qmd cleanup",)
    assert commands("generate", "one", "one") == ()
    equal = consequences("embed", "one", "one", cosine_before=False, cosine_after=False)
    assert equal.sentences() == ["The embedding fingerprint stays one: stored vectors and cached scores stay valid."]
