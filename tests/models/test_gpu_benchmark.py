"""benchmarks/gpu.py from end to end on the CPU, in small: only the device differs. No time is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from benchmarks.gpu_contestants import OURS
from benchmarks.gpu_shapes import EMBED, MIXED, QWEN3_06B, QWEN3_4B, RERANK_LONG, SHAPES, WORKS, flops, make_body, tiny


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # the profiler's, which depend on the machine
def test_every_row_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ROUNDS", 2)
    arguments = ["--device", "cpu", "--layers", "1", "--model", "0.6B", "--output", str(tmp_path), "--minutes", "9"]
    assert gpu.main(arguments) == 0
    data = json.loads((tmp_path / "gpu.json").read_text())
    printed = capsys.readouterr().out

    peers = {OURS, f"{OURS}, RMSNorm fused (a trial)", "transformers, padded, sdpa"}
    for work in WORKS:
        rows = [row for row in data["rows"] if row["work"] == work.name]
        assert {row["who"] for row in rows} == peers | ({"sentence-transformers, sdpa"} if work.role == "embed" else set())
        for row in rows:
            assert len(row["seconds"]) == 2 and row["median"] > 0
            assert row["flops"] > 0 and row["tokens_per_second"] > 0 and row["of_the_card"] > 0
            assert gpu.line(row) in printed
    assert [row["times"] for row in data["rows"] if row["who"] == OURS] == [1.0] * len(WORKS)
    assert {"bfloat16", "Qwen3 0.6B"} <= set(data["rates"])

    # All of them compute the same, or their times could not be compared.
    differences = data["agreement"]
    assert len(differences) == 4 * 3 + 2 * 2
    for what, value in differences.items():
        assert (value > 0.999) if "cosine" in what else (value < 0.02), what

    found = data["other"]["Qwen3 0.6B"]
    assert 0 <= found["idle_between_micro_batches"] < 1
    assert sum(found[RERANK_LONG.name]["shares"].values()) == pytest.approx(1)
    assert found[EMBED.name]["shares"]["matrix products"] > 0
    assert any("vLLM" in what for what in data["left_out"]) and any("flash_attention_2" in what for what in data["left_out"])
    assert gpu.render(data) in printed


def test_without_time_it_says_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cpu", "--layers", "1", "--model", "0.6B", "--output", str(tmp_path), "--minutes", "0"]) == 0
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert not data["rows"]
    assert {f"Qwen3 0.6B, {work.name}: the time is used up" for work in WORKS} <= set(data["left_out"])
    assert "the time is used up" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("required", "status"), [("", 0), ("node,gpu", 3)])
def test_without_a_gpu_it_says_so(required: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REQUIRE", required)
    assert gpu.main([]) == status
    assert "sees no CUDA device" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [tiny(QWEN3_06B, 2), tiny(QWEN3_4B, 1)])
def test_the_formula_counts_what_torch_counts(shape: gpu.Shape) -> None:
    """torch counts whole rectangles of scores, so the mask is left out here."""
    body = make_body(shape, "cpu", torch.float32)
    body.set_attn_implementation("eager")
    length = 24
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        body(input_ids=torch.arange(length)[None], use_cache=False)
    assert counter.get_total_flops() == flops(shape, [length], causal=False)


def test_a_shared_prefix_is_counted_once() -> None:
    shape = QWEN3_06B
    own, prefix = [80, 30], 100
    saved = flops(shape, [prefix + n for n in own]) - flops(shape, own, prefix)
    assert saved == pytest.approx(flops(shape, [prefix]))
    assert flops(shape, [600]) < flops(shape, [600], causal=False) < 2 * flops(shape, [600])


def test_the_shapes_are_the_published_ones() -> None:
    """Sizes that the model cards give: 0.6 and 4 billion."""
    assert {name: round(shape.parameters / 1e9, 1) for name, shape in SHAPES.items()} == {"4B": 4.0, "0.6B": 0.6}
    for name, shape in SHAPES.items():
        body = make_body(shape, "meta", torch.bfloat16)
        norms = sum(weight.numel() for weight in body.parameters() if weight.ndim == 1)
        assert sum(weight.numel() for weight in body.parameters()) - norms == shape.parameters, name
        linears = [module for module in body.layers[0].modules() if isinstance(module, torch.nn.Linear)]
        assert [(one.in_features, one.out_features) for one in linears] == shape.linears, name


def test_work_is_what_its_name_says() -> None:
    assert (MIXED.tokens, min(MIXED.own), max(MIXED.own)) == (32 * 600, 100, 1100)
    one, other = (RERANK_LONG.sequences(1000, seed) for seed in (1, 2))
    assert one.lengths.tolist() == [900] * 40 and one.prefix.tolist() == [100] * 40
    pieces = one.split()
    assert all((piece[:100] == pieces[0][:100]).all() for piece in pieces)
    assert (pieces[0][100:] != pieces[1][100:]).any() and (other.split()[0] != pieces[0]).any(), "nothing can be kept from round to round"


def test_the_table_goes_between_the_markers(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("before\n")
    for report in ("one\n", "two\n"):
        gpu.write_readme(file, report)
    file.write_text(file.read_text() + "after\n")
    gpu.write_readme(file, "three\n")
    assert file.read_text() == f"before\n\n{gpu.BEGIN}\nthree\n\n{gpu.END}after\n"
