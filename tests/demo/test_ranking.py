"""The stored comparison of rerankers is whole, and the demo uses its best."""

from __future__ import annotations

from pathlib import Path

from demo import processes, queries, rankers
from demo.servers import Servers


def test_the_table_was_measured_on_these_queries() -> None:
    table = rankers.Table.load()
    assert table.queries == len(queries.load()) >= 40
    assert {row.rerank_model for row in table.rows} >= {"minilm", "smollm2"}
    for row in table.rows:
        assert 0 < row.recall_at_3 <= 1 and 0 < row.ndcg_at_10 <= 1 and 0 < row.mrr_at_10 <= 1
        assert row.seconds_per_query > 0
    assert table.versions and table.machine and table.absent


def test_no_row_is_better_than_the_one_used() -> None:
    table = rankers.Table.load()
    used = rankers.best(table.rows)
    assert used.ndcg_at_10 >= max(row.ndcg_at_10 for row in table.rows) - 0.001


def test_the_winner_becomes_rerank_model() -> None:
    minilm = rankers.Row("a", "minilm", 1, 1, 1, 1)
    smollm2 = rankers.Row("b", "smollm2", 1, 1, 1, 1)
    folder = Path("/models/smollm2")
    assert Servers.rerank_model(minilm, folder) == processes.minilm()
    assert Servers.rerank_model(smollm2, folder) == str(folder)


def test_a_table_survives_saving(tmp_path: Path) -> None:
    table = rankers.Table.load()
    table.save(tmp_path / "copy.json")
    assert rankers.Table.load(tmp_path / "copy.json") == table
