"""Requests from a laptop of the tailnet to the true services, under their two names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.stack.conftest import QUESTION
from tests.support.qmdctl_cli import Qmdctl, docker
from tests.support.tailnet import Tailnet
from tests.support.tailnet_project import HOSTS
from tests.support.texts import PLANET_COSINES, PLANETS, RED_PLANET

pytestmark = [pytest.mark.docker, pytest.mark.tailnet, pytest.mark.slow, pytest.mark.timeout(900)]
SYSTEM_ROOTS = {"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}
CONNECT = """
import socket, sys
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((sys.argv[1], port), 3).close()
        print(port, "open")
    except OSError as error:
        print(port, "closed")
"""


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_answers_with_a_certificate_of_its_own(tailnet: Tailnet, true_stack: Qmdctl, host: str) -> None:
    answer = tailnet.ask(tailnet.url(host, "/health"))
    assert answer["status"] == 200, answer
    assert "CERTIFICATE_VERIFY_FAILED" in tailnet.ask(tailnet.url(host, "/health"), env=SYSTEM_ROOTS)["error"]


def test_a_short_name_or_an_address_has_no_certificate(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    address = tailnet.node(HOSTS[0])["Addresses"][0].split("/")[0]
    for url in (f"https://{HOSTS[0]}/health", f"https://{address}/health"):
        assert "error" in tailnet.ask(url)


def test_the_laptop_has_no_other_way_than_the_tailnet(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    """Of the nodes' ports only 443 is open: not the services', not the sidecars' own, not one of the box's."""
    for host in HOSTS:
        address = tailnet.node(host)["Addresses"][0].split("/")[0]
        done = tailnet.laptop("python3", "-c", CONNECT, address, "443", "80", "8000", "8001", "9002", "41651", "22")
        assert done.out.split("\n")[0] == "443 open", done.err
        assert done.out.count("closed") == 6, done.out
    path = tailnet.laptop("tailscale", "ping", "-c", "1", HOSTS[0]).out
    assert "via DERP" in path  # the box's network cannot be reached from the laptop's


def test_no_tailscale_program_has_a_way_out_of_this_machine(true_stack: Qmdctl) -> None:
    for container in ("qmdnet-control", "qmdnet-acme", "qmdnet-laptop", "qmd-ts-embed", "qmd-ts-vllm"):
        networks = json.loads(docker("inspect", "--format", "{{json .NetworkSettings.Networks}}", container))
        for name in networks:
            assert docker("network", "inspect", "--format", "{{.Internal}}", name) == "true", (container, name)


def test_health_proves_each_name_by_a_request_through_the_other_sidecar(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    done = true_stack.run("health", "--json", env={"SSL_CERT_FILE": str(tailnet.roots)})
    assert done.status == 0, done.out + done.err
    proved = {link["service"] for link in done.json["links"] if (link["link"], link["state"]) == ("request", "ok")}
    assert proved == {"ts-embed", "ts-vllm"}
    # This machine's own roots do not have the tests' authority.
    done = true_stack.run("health", "--json")
    assert (done.status, done.json["first_broken"]["link"]) == (1, "request")
    assert "certificate" in done.json["first_broken"]["detail"]


def test_embeddings_are_the_model_s(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    answer = tailnet.ask(tailnet.url("qmd-embed", "/v1/embeddings"), json={"input": [RED_PLANET, *PLANETS]})
    assert answer["status"] == 200, answer
    vectors = np.array([one["embedding"] for one in json.loads(answer["body"])["data"]])
    np.testing.assert_allclose(vectors[1:] @ vectors[0], PLANET_COSINES, atol=2e-3)


def test_rerank_sorts(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    answer = tailnet.ask(tailnet.url("qmd-embed", "/v1/rerank"), json={"query": RED_PLANET, "documents": PLANETS})
    assert [one["index"] for one in json.loads(answer["body"])["results"]] == [1, 3, 2, 0]


def test_a_body_of_two_megabytes_passes(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    answer = tailnet.ask(tailnet.url("qmd-embed", "/v1/embeddings"), json={"input": RED_PLANET}, padding=2 << 20)
    assert answer["status"] == 200, answer


def test_chat_answers_the_same_under_both_names(tailnet: Tailnet, true_stack: Qmdctl, expected: dict[str, str]) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "temperature": 0}
    for host in HOSTS:
        answer = tailnet.ask(tailnet.url(host, "/v1/chat/completions"), json=body)
        assert answer["status"] == 200, answer
        assert json.loads(answer["body"])["choices"][0]["message"]["content"] == expected["chat"]


def test_a_stream_arrives_token_by_token(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    """When the laptop has the first event, vLLM is still at work on the others: nothing on the way holds them back."""
    body = {"messages": [{"role": "user", "content": "Write a long story."}], "max_tokens": 80, "temperature": 0, "stream": True}
    url, metrics = tailnet.url("qmd-vllm", "/v1/chat/completions"), tailnet.url("qmd-vllm", "/metrics")
    answer = tailnet.ask(url, json=body, stream=True, during=metrics)
    assert answer["status"] == 200, answer
    assert answer["headers"]["content-type"].startswith("text/event-stream")
    assert answer["events"][-1] == "[DONE]"
    assert len(answer["events"]) > 40
    running = [line for line in answer["during"].splitlines() if line.startswith("vllm:num_requests_running")]
    assert running[0].endswith(" 1.0"), running


def test_logs_stay_on_the_box_and_funnel_is_off(tailnet: Tailnet, true_stack: Qmdctl) -> None:
    for host in HOSTS:
        node = tailnet.node(host)
        assert node["Hostinfo"]["NoLogsNoSupport"]
        assert not node["Hostinfo"].get("WireIngress")
        assert node["Tags"] == ["tag:qmd-server"]
        assert "KeyExpiry" not in node


def test_qmdctl_is_on_the_laptop_from_its_wheel_alone(tailnet: Tailnet) -> None:
    assert tailnet.laptop("qmdctl", "--help").status == 0
    found = tailnet.laptop("/opt/qmdctl/bin/python", "-c", "import qmdctl; print(qmdctl.__file__)").out
    assert found.startswith("/opt/qmdctl/lib/")
