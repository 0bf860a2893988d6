"""pip's configuration, as uv is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bootstrap.pip_settings import pip_environment, pip_options, uv_environment

NO_FILES = {"PIP_CONFIG_FILE": "/dev/null"}


@pytest.mark.parametrize(
    ("pip", "uv"),
    [
        ({"PIP_INDEX_URL": "https://index.example/simple"}, {"UV_DEFAULT_INDEX": "https://index.example/simple"}),
        (
            {"PIP_EXTRA_INDEX_URL": "https://a.example/s https://b.example/s"},
            {"UV_INDEX": "https://a.example/s https://b.example/s", "UV_INDEX_STRATEGY": "unsafe-best-match"},
        ),
        ({"PIP_FIND_LINKS": "/wheels https://c.example/w"}, {"UV_FIND_LINKS": "/wheels,https://c.example/w"}),
        ({"PIP_NO_INDEX": "1"}, {"UV_NO_INDEX": "1"}),
        ({"PIP_CERT": "/ca.pem"}, {"SSL_CERT_FILE": "/ca.pem"}),
        ({"PIP_TRUSTED_HOST": "index.example"}, {"UV_INSECURE_HOST": "index.example"}),
        ({"PIP_PROXY": "http://proxy.example:3128"}, {"HTTPS_PROXY": "http://proxy.example:3128"}),
        ({"PIP_DEFAULT_TIMEOUT": "180"}, {"UV_HTTP_TIMEOUT": "180"}),
    ],
)
def test_variables(pip: dict[str, str], uv: dict[str, str], tmp_path: Path) -> None:
    result = uv_environment(NO_FILES | pip, home=tmp_path)
    assert {name: result.get(name) for name in uv} == uv


@pytest.mark.parametrize(
    ("pip", "own"),
    [
        ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"),
        ("PIP_INDEX_URL", "UV_INDEX_URL"),
        ("PIP_EXTRA_INDEX_URL", "UV_INDEX"),
        ("PIP_CERT", "SSL_CERT_FILE"),
        ("PIP_PROXY", "https_proxy"),
    ],
)
def test_uv_own_settings_win(pip: str, own: str, tmp_path: Path) -> None:
    given = NO_FILES | {pip: "http://pip.example", own: "http://uv.example"}
    result = uv_environment(given, home=tmp_path)
    assert result[own] == "http://uv.example"
    assert "http://pip.example" not in [value for name, value in result.items() if name != pip]


def test_files_of_the_user_and_variables_over_them(tmp_path: Path) -> None:
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://file.example/simple\nextra_index_url =\n    https://one.example/s\n    https://two.example/s\n"
        "[install]\ntimeout = 7\n[list]\nindex-url = https://not-this.example\n"
    )
    result = uv_environment({}, home=tmp_path)
    assert result["UV_DEFAULT_INDEX"] == "https://file.example/simple"
    assert result["UV_INDEX"] == "https://one.example/s https://two.example/s"
    assert result["UV_HTTP_TIMEOUT"] == "7"
    assert uv_environment({"PIP_INDEX_URL": "https://variable.example"}, home=tmp_path)["UV_DEFAULT_INDEX"] == "https://variable.example"
    assert pip_options(NO_FILES, tmp_path) == {"config-file": "/dev/null"}


def test_named_file_is_read_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    named = tmp_path / "named.conf"
    named.write_text("[global]\nindex-url = https://named.example\n")
    assert uv_environment({"PIP_CONFIG_FILE": str(named)}, home=tmp_path)["UV_DEFAULT_INDEX"] == "https://named.example"
    named.write_text("index-url without a section\n")
    assert uv_environment({"PIP_CONFIG_FILE": str(named), "PIP_INDEX_URL": "x"}, home=tmp_path)["UV_DEFAULT_INDEX"] == "x"


def test_index_in_uv_toml_wins(tmp_path: Path) -> None:
    (tmp_path / ".config/uv").mkdir(parents=True)
    (tmp_path / ".config/uv/uv.toml").write_text('[[index]]\nurl = "https://uv.example"\ndefault = true\n')
    result = uv_environment(NO_FILES | {"PIP_INDEX_URL": "https://pip.example", "PIP_CERT": "/ca.pem"}, home=tmp_path)
    assert "UV_DEFAULT_INDEX" not in result
    assert result["SSL_CERT_FILE"] == "/ca.pem"


def test_certificates_of_the_system_unless_a_file_is_named(tmp_path: Path) -> None:
    assert uv_environment(NO_FILES, home=tmp_path)["UV_SYSTEM_CERTS"] == "true"
    assert "UV_SYSTEM_CERTS" not in uv_environment(NO_FILES | {"SSL_CERT_FILE": "/ca.pem"}, home=tmp_path)
    assert uv_environment(NO_FILES | {"UV_SYSTEM_CERTS": "false"}, home=tmp_path)["UV_SYSTEM_CERTS"] == "false"


def test_pip_is_told_of_uv_settings() -> None:
    result = pip_environment({"UV_DEFAULT_INDEX": "https://uv.example", "SSL_CERT_FILE": "/ca.pem"})
    assert (result["PIP_INDEX_URL"], result["PIP_CERT"]) == ("https://uv.example", "/ca.pem")
    assert pip_environment({"UV_DEFAULT_INDEX": "a", "PIP_INDEX_URL": "b"})["PIP_INDEX_URL"] == "b"
