"""What is said before a download."""

from __future__ import annotations

import pytest

from scripts.bootstrap.download_size import announcement, duration, human, normal


@pytest.mark.parametrize(("size", "text"), [(3_014_900_000, "3.0 GB"), (20_400_000, "20 MB"), (1_000_000, "1 MB"), (4_200, "4 kB")])
def test_human(size: int, text: str) -> None:
    assert human(size) == text


@pytest.mark.parametrize(
    ("size", "text"), [(3_000_000_000, "about 4 minutes"), (500_000_000, "about 40 seconds"), (1_000, "a few seconds")]
)
def test_duration_at_100_mbit(size: int, text: str) -> None:
    assert duration(size) == text


def test_announcement() -> None:
    assert announcement(set(), {}) == "Nothing to download: every package is in uv's cache."
    assert announcement({"a"}, {"a": 2_000_000, "b": 9}) == "2 MB to download in 1 package: a few seconds at 100 Mbit/s."
    assert announcement({"a", "b"}, {"a": 2_000_000}).startswith("2 MB to download in 2 packages and 1 of unknown size: ")
    assert "does not tell their sizes" in announcement({"a"}, {})
    assert "TORCH_BACKEND=cpu" in announcement({"nvidia-cublas"}, {"nvidia-cublas": 400_000_000})


def test_names_are_compared_as_the_index_does() -> None:
    assert normal("Typing_Extensions") == normal("typing.extensions") == "typing-extensions"
