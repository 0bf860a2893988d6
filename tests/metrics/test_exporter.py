"""The exporter, against a real tailscaled that nobody has logged in, and a FAKE of one that is."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from embed_service.exporter.certificate import not_after
from embed_service.exporter.local_api import LocalApi
from embed_service.exporter.sidecar import funnel, proxies, served_names
from tests.metrics.conftest import DAY, SIDECARS, write_certificate
from tests.metrics.fakes import FakeTailscaled
from tests.support.monitoring import Processes, start_exporter
from tests.support.service import ROOT, free_port, poll
from tests.support.tailnet_images import PROGRAMS, need_programs


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    running = Processes(tmp_path)
    yield running
    running.close()


def series(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def get(address: str, path: str) -> httpx.Response:
    return httpx.get(f"http://{address}{path}", timeout=10, trust_env=False)


@pytest.mark.parametrize("days", [1, 90, 9000])  # from 2050 on a certificate writes its years with four digits
def test_a_certificate_s_end_is_what_openssl_says(tmp_path: Path, days: int) -> None:
    write_certificate(tmp_path / "one.crt", "a.ts.net", days)
    said = subprocess.run(
        ["openssl", "x509", "-enddate", "-noout", "-in", tmp_path / "one.crt"], capture_output=True, text=True, check=True
    )
    assert not_after((tmp_path / "one.crt").read_text() * 2) == ssl.cert_time_to_seconds(said.stdout.strip().partition("=")[2])


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_what_is_no_certificate_is_refused(tmp_path: Path, cut: int) -> None:
    write_certificate(tmp_path / "one.crt", "a.ts.net", 1)
    lines = (tmp_path / "one.crt").read_text().splitlines()
    for text in ("", "-----BEGIN CERTIFICATE-----", "\n".join(lines[:-2]), "\n".join([lines[0], *lines[1 + cut : 3 + cut], lines[-1]])):
        with pytest.raises(ValueError, match="no certificate"):
            not_after(text)


def test_a_sidecar_that_is_logged_in(tmp_path: Path, processes: Processes) -> None:
    with FakeTailscaled("ts-embed", tmp_path / "sidecars/ts-embed") as sidecar:
        write_certificate(sidecar.folder / f"{sidecar.domain}.crt", sidecar.domain, 30)
        write_certificate(sidecar.folder / "an-earlier-name.ts.net.crt", "an-earlier-name.ts.net", 1)
        address = start_exporter(processes, tmp_path / "sidecars")
        found = series(get(address, "/sidecar?name=ts-embed").text)
        assert found["qmd_sidecar_up"] == found["qmd_sidecar_running"] == found["qmd_sidecar_online"] == found["qmd_sidecar_proxies"] == 1
        assert found["qmd_sidecar_funnel"] == found["qmd_sidecar_key_expires"] == found["qmd_sidecar_health_problems"] == 0
        assert "qmd_sidecar_key_expiry_timestamp_seconds" not in found
        ends = {name: value for name, value in found.items() if "certificate" in name}
        assert list(ends) == [f'qmd_sidecar_certificate_expiry_timestamp_seconds{{domain="{sidecar.domain}"}}']
        now = datetime.now(UTC).timestamp()
        assert abs(next(iter(ends.values())) - now - 30 * DAY) < 600
        assert found['tailscaled_outbound_bytes_total{path="derp"}'] == 640000
        sidecar.key_ends(now + DAY)
        assert series(get(address, "/sidecar?name=ts-embed").text)["qmd_sidecar_key_expiry_timestamp_seconds"] == pytest.approx(now + DAY)
        sidecar.broken = True
        gone = series(get(address, "/sidecar?name=ts-embed").text)
        assert gone["qmd_sidecar_up"] == 0
        assert gone["qmd_sidecar_last_success_timestamp_seconds"] == pytest.approx(now, abs=600)
        assert {name: value for name, value in gone.items() if "certificate" in name} == ends, "what is on the disk stays true"
        assert "qmd_sidecar_online" not in gone
    assert processes.log("exporter").count("500") == 1, "said once"


@pytest.mark.tailnet
def test_a_real_tailscaled_tells_who_is_not_root_and_lets_him_change_nothing(tmp_path: Path, processes: Processes) -> None:
    need_programs()
    folder = tmp_path / "sidecars/ts-vllm"
    folder.mkdir(parents=True)
    for path in (folder, *list(folder.parents)[:4]):
        path.chmod(0o755)
    processes.start(
        "tailscaled", str(PROGRAMS / "tailscaled"), "--tun=userspace-networking", f"--statedir={tmp_path / 'state'}",
        f"--socket={folder / 'tailscaled.sock'}", f"--port={free_port()}", "--no-logs-no-support",
    )  # fmt: skip

    def state() -> Any:
        try:
            return LocalApi(folder / "tailscaled.sock").status()["BackendState"]
        except OSError:
            return None

    poll(lambda: state() == "NeedsLogin", 30, "tailscaled")
    address = start_exporter(processes, tmp_path / "sidecars")
    found = series(get(address, "/sidecar?name=ts-vllm").text)
    assert found["qmd_sidecar_up"] == 1
    assert found["qmd_sidecar_running"] == found["qmd_sidecar_online"] == found["qmd_sidecar_proxies"] == 0
    assert any(name.startswith("tailscaled_") for name in found)
    if os.getuid() == 0:
        program = "import sys; from pathlib import Path; from embed_service.exporter.local_api import LocalApi, _Connection\n"
        program += "p = Path(sys.argv[1]); a = LocalApi(p); print(a.status()['BackendState'], a.serve_config(), len(a.metrics()) > 0)\n"
        program += "c = _Connection(p); c.request('POST', '/localapi/v0/logout'); print(c.getresponse().status)"
        command = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            sys.executable,
            "-c",
            program,
            str(folder / "tailscaled.sock"),
        ]
        done = subprocess.run(command, cwd="/", env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["NeedsLogin", "{}", "True", "403"], done.stderr


@pytest.mark.parametrize(
    ("profiles", "running", "wanted"),
    [
        ("", (), ["embed"]),
        ("generation", (), ["embed", "vllm"]),
        ("metrics, tailnet", (), ["embed", "ts-embed", "ts-vllm"]),
        ("metrics", ("ts-vllm",), ["embed", "ts-vllm"]),
        ("*", (), ["embed", "vllm", "ts-embed", "ts-vllm"]),
    ],
)
def test_what_is_to_be_scraped(tmp_path: Path, processes: Processes, profiles: str, running: tuple[str, ...], wanted: list[str]) -> None:
    for name in running:
        (tmp_path / "sidecars" / name).mkdir(parents=True)
        (tmp_path / "sidecars" / name / "tailscaled.sock").touch()
    address = start_exporter(processes, tmp_path / "sidecars", COMPOSE_PROFILES=profiles)
    found = get(address, "/targets").json()
    assert [one["labels"]["instance"] for one in found] == wanted
    for one in found:
        if one["labels"]["job"] == "sidecar":
            labels = one["labels"]
            assert one["targets"] == [address]
            answer = get(address, f"{labels['__metrics_path__']}?name={labels['__param_name']}")
            assert series(answer.text) == {"qmd_sidecar_up": 0, "qmd_sidecar_last_success_timestamp_seconds": 0}


def test_other_requests_are_answered_with_what_there_is(tmp_path: Path, processes: Processes) -> None:
    address = start_exporter(processes, tmp_path)
    for path, words in (
        ("/sidecar?name=../../etc", "choose from ts-embed, ts-vllm"),
        ("/sidecar", "choose from"),
        ("/etc/passwd", "/metrics"),
    ):
        answer = get(address, path)
        assert (answer.status_code, words in answer.text) == (404, True)
    assert httpx.post(f"http://{address}/targets", trust_env=False).status_code == 501
    assert "process_cpu_seconds_total" in series(get(address, "/metrics").text)


def test_it_ends_at_once_and_says_why_it_cannot_begin(tmp_path: Path, processes: Processes) -> None:
    address = start_exporter(processes, tmp_path)
    command = [sys.executable, "-m", "embed_service", "exporter"]
    for port, words in ((address.rpartition(":")[2], "cannot listen"), ("many", "not a port number")):
        environment = {"PATH": os.environ["PATH"], "EXPORTER_PORT": port}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.search(words, done.stderr)
        assert "EXPORTER_PORT" in done.stderr
    process = processes.start("another", *command, EXPORTER_PORT=str(free_port()))
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) in (0, -signal.SIGTERM)


def test_it_imports_no_torch_and_takes_no_setting_of_the_service(tmp_path: Path) -> None:
    program = (
        "import sys, embed_service.exporter.server; print([m for m in sys.modules if m in ('torch', 'fastapi', 'pydantic', 'qmdctl')])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_serve_config_with_services_and_funnel() -> None:
    web = {"a.ts.net:443": {"Handlers": {"/": {"Proxy": "http://embed:8001"}, "/text": {"Text": "hello"}}}}
    service = {"Web": {"qmd.ts.net:443": {"Handlers": {"/": {"Proxy": "http://embed:8001"}}}}}
    config = {"Web": web, "Services": {"svc:qmd": service}}
    assert (served_names(config), proxies(config), funnel(config)) == ({"a.ts.net", "qmd.ts.net"}, 2, False)
    assert (served_names({}), proxies({}), funnel({})) == (frozenset(), 0, False)
    assert funnel({"Foreground": {"1": {"AllowFunnel": {"a.ts.net:443": True}}}})
    assert not funnel({"AllowFunnel": {"a.ts.net:443": False}})
    assert SIDECARS == ("ts-embed", "ts-vllm")
