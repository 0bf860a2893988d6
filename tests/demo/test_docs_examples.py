"""The examples in docs/ run against the service as they are printed there."""

from __future__ import annotations

import json
import re

import httpx
import pytest
import yaml

from tests.support.service import ROOT, ServiceProcess

CLIENTS = (ROOT / "docs/clients.md").read_text()
ADDRESS = "http://127.0.0.1:8001"
SNIPPETS = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", CLIENTS, re.MULTILINE | re.DOTALL)


def test_every_sdk_section_has_an_example() -> None:
    assert [heading.split()[0] for heading, _ in SNIPPETS] == ["openai", "cohere", "langchain-openai", "llama-index"]


@pytest.mark.filterwarnings("ignore")  # of the SDKs
@pytest.mark.parametrize("snippet", [pytest.param(code, id=heading.split()[0]) for heading, code in SNIPPETS])
def test_python_example(snippet: str, service: ServiceProcess, capsys: pytest.CaptureFixture[str]) -> None:
    for module in re.findall(r"^(?:from|import) (\w+)", snippet, re.MULTILINE):
        pytest.importorskip(module)
    assert ADDRESS in snippet
    exec(compile(snippet.replace(ADDRESS, service.url), "docs/clients.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out.split()
    assert printed and all(re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", word) for word in printed)


CURLS = [
    pytest.param(path, body, id=f"{page.name}{path.replace('/', '-')}")
    for page in (ROOT / "docs/api.md", ROOT / "docs/troubleshooting.md", ROOT / "README.md")
    for path, body in re.findall(
        r"curl -s http://127\.0\.0\.1:8001([\w/]+)(?: -H 'Content-Type: application/json' \\\n\s+-d '(.*)')?", page.read_text()
    )
]


@pytest.mark.parametrize(("path", "body"), CURLS)
def test_curl_example(path: str, body: str, service: ServiceProcess) -> None:
    answer = httpx.post(service.url + path, json=json.loads(body)) if body else httpx.get(service.url + path)
    assert answer.status_code == 200


def test_there_are_curl_examples_of_both_calls() -> None:
    assert {"/v1/embeddings", "/v1/rerank", "/health"} <= {param.values[0] for param in CURLS}


def test_yaml_examples_are_remote_blocks() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", CLIENTS, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        remote = yaml.safe_load(block)["remote"]
        assert set(remote) <= {"url", "embed_url", "generation_url", "models"}
        assert not str(remote["url"]).endswith("/v1")


def test_shell_examples_export_addresses_of_the_stack() -> None:
    for block in re.findall(r"```sh\n(.*?)```", CLIENTS, re.DOTALL):
        urls = re.findall(r"https://(\S+)", block)
        assert urls
        assert all(re.fullmatch(r"qmd-(embed|vllm)\.<tailnet>\.ts\.net(/v1)?", url) for url in urls)
