"""docs/ and README.md agree with the code and with each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from embed_service import config_docs
from embed_service.settings import OTHERS, Settings
from qmdctl.compose_files import key_comments

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_configuration_page_is_generated_from_the_settings() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    assert page == config_docs.render(), "run: python -m embed_service config --markdown > docs/configuration.md"


def test_every_setting_is_in_one_section_and_has_a_description() -> None:
    listed = [name for names in config_docs.sections().values() for name in names]
    assert sorted(listed) == sorted(Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())
    assert set(config_docs.OTHER_DESCRIPTIONS) == OTHERS


@pytest.mark.parametrize(
    ("name", "default", "values"),
    [
        ("device", "`cuda`", "`cuda`, `auto`, `cpu`, `mps`"),
        ("embed_memory_gb", "unset", "number, above 0"),
        ("port", "`8001`", "integer, at least 0, at most 65535"),
        ("rerank_model_aliases", "`rerank,qmd-rerank`", "list"),
        ("use_flash_attn", "`true`", "`true`, `false`"),
    ],
)
def test_defaults_and_values_in_words(name: str, default: str, values: str) -> None:
    field = Settings.model_fields[name]
    assert (config_docs.default(field), config_docs.allowed(field)) == (default, values)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_named_in_the_docs_exist(page: Path) -> None:
    """A word in backquotes that is written like a setting of ours, by its first part, is one."""
    first_parts = {name.split("_")[0] for name in Settings.model_fields if "_" in name} - {"use"}
    ours = {name.upper() for name in Settings.model_fields} | OTHERS | set(key_comments(ROOT / ".env.example"))
    for word in re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)(?:=[^`]*)?`", page.read_text()):
        if word.split("_")[0].lower() in first_parts:
            assert word in ours, word
