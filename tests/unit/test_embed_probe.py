"""The embed container's healthcheck, and the certificate that the service's HTTP clients are given."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from embed_service.__main__ import main
from embed_service.probe import report

PROGRESS = {"text": "downloading 1.20 of 8.00 GB", "done_bytes": 1200, "total_bytes": 8000, "stalled": True, "stalled_seconds": 90}
COUNTS = {"done_bytes": 1200, "total_bytes": 8000, "stalled_seconds": 90}
OFFLINE: dict[str, Any] = {"status": "error", "phase": "error", "error": "The hub cannot be used.", "error_code": "offline"}


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"status": "ok", "phase": "ready"}, {"status": "ok", "phase": "ready"}),
        ({"status": "loading", "phase": "downloading", "progress": PROGRESS}, {"status": "loading", "phase": "downloading", **COUNTS}),
        ({"status": "loading", "phase": "loading", "progress": PROGRESS}, {"status": "loading", "phase": "loading"}),
        (OFFLINE | {"progress": PROGRESS}, {"status": "loading", "phase": "downloading", **COUNTS}),
        (OFFLINE, {"status": "error", "phase": "error", "error": "The hub cannot be used."}),
        (OFFLINE | {"error_code": "gated"}, {"status": "error", "phase": "error", "error": "The hub cannot be used."}),
    ],
)
def test_a_download_that_the_network_broke_off_is_one_that_stalls(body: dict[str, Any], line: dict[str, Any]) -> None:
    assert report(body) == line


def test_a_proxys_certificate_is_believed_unless_another_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names, file = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), tmp_path / "ca"
    for name, value in zip(names, ("", "/own.pem", ""), strict=True):
        monkeypatch.setenv(name, value)

    def trusted() -> list[str]:
        assert main(["config"], str(file)) == 0
        return [os.environ[name] for name in names]

    assert trusted() == ["", "/own.pem", ""]
    file.touch()
    assert trusted() == ["", "/own.pem", ""], "an empty file stands for none"
    file.write_text("-----BEGIN CERTIFICATE-----")
    assert trusted() == [str(file), "/own.pem", str(file)]
