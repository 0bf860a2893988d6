"""Single-URL mode in front of servers that behave in ways the real one here does not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.generation.conftest import DEADLINE_SECONDS, KEY
from tests.generation.scripted import Call, ScriptedServer
from tests.support.service import ServiceProcess, free_port, poll
from tests.support.wire import assert_error

MESSAGES = [{"role": "user", "content": "hello"}]


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})


def complain(status: int, message: str, **fields: Any) -> Callable[[Call], None]:
    return lambda call: call.answer(status, {"error": {"message": message, "type": "x", "param": None, **fields}})


class TestTheRequest:
    def test_the_key_is_the_servers_and_never_the_clients(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        scripted_client.post("/v1/chat/completions", json={"messages": MESSAGES}, headers={"authorization": "Bearer of-the-client"})
        assert [call.headers["authorization"] for call in scripted.calls] == [f"Bearer {KEY}"]

    @pytest.mark.parametrize(("asked", "sent"), [(None, "served"), ("gpt-4o", "served"), ("also-served", "also-served")])
    def test_the_model(self, scripted: ScriptedServer, scripted_client: httpx.Client, asked: str | None, sent: str) -> None:
        answer = chat(scripted_client, model=asked) if asked else chat(scripted_client)
        assert answer.headers["x-model"] == sent
        assert scripted.calls[0].body["model"] == sent

    def test_a_model_that_was_replaced(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        assert chat(scripted_client).headers["x-model"] == "served"
        scripted.models = lambda call: call.answer(200, {"data": [{"id": "new"}]})

        def only_new(call: Call) -> None:
            if call.body.get("model") == "new":
                call.say("from the new one")
            else:
                call.answer(404, {"error": {"message": f"The model `{call.body.get('model')}` does not exist."}})

        scripted.chat = only_new
        assert chat(scripted_client).json()["choices"][0]["message"]["content"] == "from the new one"
        scripted.reset()
        scripted.chat = lambda call: (
            call.say("back") if call.body.get("model") == "served" else complain(404, f"no `{call.body['model']}`")(call)
        )
        assert chat(scripted_client).headers["x-model"] == "served"

    @pytest.mark.parametrize(
        ("fields", "sent"),
        [
            ({}, {"enable_thinking": False}),
            ({"enable_thinking": True}, {"enable_thinking": True}),
            ({"chat_template_kwargs": {"enable_thinking": True}}, {"enable_thinking": True}),
            ({"chat_template_kwargs": {"tools": 1}}, {"enable_thinking": False, "tools": 1}),
        ],
    )
    def test_thinking_is_off_unless_asked_for(
        self, scripted: ScriptedServer, scripted_client: httpx.Client, fields: dict[str, Any], sent: dict[str, Any]
    ) -> None:
        chat(scripted_client, **fields)
        assert scripted.calls[0].body["chat_template_kwargs"] == sent

    def test_no_template_applies_to_a_completion(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        scripted_client.post("/v1/completions", json={"prompt": "x"})
        assert "chat_template_kwargs" not in scripted.calls[0].body

    def test_unicode_is_repaired(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        content = b'{"prompt": "half \\ud83d an emoji, a whole \\ud83d\\ude00, NUL \\u0000", "seed": 123456789012345678901234567890}'
        answer = scripted_client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 200
        assert scripted.calls[0].body["prompt"] == "half \ufffd an emoji, a whole \U0001f600, NUL \0"
        assert scripted.calls[0].body["seed"] == 123456789012345678901234567890


class TestTheAnswer:
    @pytest.mark.parametrize(
        ("content", "left"),
        [
            ("<think>\nhm\n</think>\n\nlex: a", "lex: a"),
            ("<think>\n\n</think>\n\nlex: a", "lex: a"),
            ("\n<think>never ended", ""),
            ("lex: <think>a</think>", "lex: <think>a</think>"),
            ("lex: a", "lex: a"),
        ],
    )
    def test_thinking_is_removed(self, scripted: ScriptedServer, scripted_client: httpx.Client, content: str, left: str) -> None:
        scripted.chat = lambda call: call.say(content)
        assert chat(scripted_client).json()["choices"][0]["message"]["content"] == left

    def test_thinking_that_was_asked_for_stays(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        scripted.chat = lambda call: call.say("<think>hm</think>yes")
        assert chat(scripted_client, enable_thinking=True).json()["choices"][0]["message"]["content"] == "<think>hm</think>yes"

    @pytest.mark.parametrize(
        ("status", "ours", "names"),
        [
            (400, 400, ["This model's maximum context length is 2048 tokens"]),
            (422, 400, ["temperature"]),
            (404, 404, ["GENERATION_URL", "GENERATION_MODEL"]),
            (401, 503, ["GENERATION_API_KEY_FILE"]),
            (403, 503, ["GENERATION_API_KEY_FILE"]),
            (429, 503, ["GENERATION_URL"]),
            (503, 503, ["GENERATION_URL"]),
            (502, 503, ["GENERATION_URL"]),
            (500, 500, ["GENERATION_URL"]),
        ],
    )
    def test_errors_come_in_our_form(
        self, scripted: ScriptedServer, scripted_client: httpx.Client, status: int, ours: int, names: list[str]
    ) -> None:
        scripted.chat = complain(status, names[0] if ours == 400 else "so it is")
        assert_error(chat(scripted_client, temperature=-1), ours, *names)

    def test_something_else_than_json(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        scripted.chat = lambda call: call.answer(200, "<html>hello</html>", content_type="text/html")
        assert_error(chat(scripted_client), 503, "GENERATION_URL")

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_redirect_names_the_address_to_set(self, scripted: ScriptedServer, scripted_client: httpx.Client, stream: bool) -> None:
        scripted.chat = lambda call: call.answer(308, "", location="https://text.example/v1/chat/completions")
        assert_error(chat(scripted_client, stream=stream), 503, "GENERATION_URL", "308", "https://text.example")

    def test_a_server_that_never_answers(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        closed: list[bool] = []
        scripted.chat = lambda call: closed.append(call.wait_closed(60))
        assert_error(chat(scripted_client), 503, "GENERATION_URL", f"{DEADLINE_SECONDS} s")
        poll(lambda: closed == [True], 10, "the service to close the connection")


class TestRefusals:
    """Error texts as the servers named write them."""

    @pytest.mark.parametrize(
        ("field", "error"),
        [
            ("field_a", {"detail": "Unexpected fields in the request: {'field_a'}"}),  # transformers serve
            ("field_b", {"error": {"message": "Unknown parameter: 'field_b'.", "param": "field_b"}}),  # OpenAI
            (
                "field_c",
                {"detail": [{"type": "extra_forbidden", "loc": ["body", "field_c"], "msg": "Extra inputs are not permitted"}]},
            ),  # FastAPI
            (
                "field_d",  # vLLM 0.12 on reasoning_effort: a value that it does not know
                {"error": {"message": "[{'type': 'literal_error', 'loc': ('body', 'field_d'), 'msg': \"Input should be 'low'\"}]"}},
            ),
        ],
    )
    def test_the_named_field_alone_is_dropped(
        self, scripted: ScriptedServer, scripted_client: httpx.Client, field: str, error: dict[str, Any]
    ) -> None:
        scripted.chat = lambda call: call.answer(400, error) if field in call.body else call.say("yes")
        for _ in range(2):
            answer = chat(scripted_client, **{field: "none"}, temperature=0.5, low="x")
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-dropped-fields"] == field
        assert [field in call.body for call in scripted.calls] == [True, False, False]
        assert all(call.body["temperature"] == 0.5 and call.body["low"] == "x" for call in scripted.calls)

    def test_a_refused_value_is_not_a_refused_field(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        def only_low(call: Call) -> None:
            if call.body.get("effort", "low") == "low":
                call.say("yes")
            else:
                complain(400, "'effort' must be 'low'")(call)

        scripted.chat = only_low
        assert chat(scripted_client, effort="none").headers["x-dropped-fields"] == "effort"
        assert chat(scripted_client, effort="none").headers["x-dropped-fields"] == "effort"
        assert "x-dropped-fields" not in chat(scripted_client, effort="low").headers
        assert [call.body.get("effort") for call in scripted.calls] == ["none", None, None, "low"]

    def test_a_clients_own_mistake_is_its_own(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        scripted.chat = complain(400, "max_tokens must be at least 1, got -5.", param="max_tokens")
        assert assert_error(chat(scripted_client, max_tokens=-5), 400, "max_tokens")["param"] == "max_tokens"
        assert len(scripted.calls) == 1

    def test_essential_fields_stay_and_tries_end(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        scripted.chat = complain(400, "Unknown parameter: 'messages', 'stream'")
        assert_error(chat(scripted_client), 400, "messages")
        assert len(scripted.calls) == 1
        # One field at a time, for ever: given up after a few.
        scripted.chat = lambda call: complain(400, f"Unknown parameter: '{max(k for k in call.body if k.startswith('odd'))}'")(call)
        assert_error(chat(scripted_client, **{f"odd_{n:02}": n for n in range(30)}), 400, "odd")
        assert len(scripted.calls) < 12

    def test_names_of_a_clients_making_do_no_harm_in_headers(self, scripted_client: httpx.Client, scripted: ScriptedServer) -> None:
        scripted.chat = lambda call: complain(400, "Unknown parameter: 'é\r\nx-evil: 1'")(call) if len(call.body) > 3 else call.say("yes")
        answer = chat(scripted_client, model={"not": "a name"}, **{"é\r\nx-evil: 1": 1})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-dropped-fields"] == "???x-evil: 1"
        assert "x-evil" not in answer.headers


class TestStreams:
    def test_the_first_event_comes_before_the_last_is_made(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        seen = threading.Event()
        waited: list[bool] = []

        def two_events(call: Call) -> None:
            call.begin_stream()
            call.send("first")
            waited.append(seen.wait(30))
            call.send("[DONE]")

        scripted.chat = two_events
        headers = {"accept-encoding": "gzip"}
        with scripted_client.stream("POST", "/v1/chat/completions", json={"messages": MESSAGES, "stream": True}, headers=headers) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            chunks = stream.iter_bytes()
            assert next(chunks) == b"data: first\n\n"
            seen.set()
            assert b"".join(chunks) == b"data: [DONE]\n\n"
        assert waited == [True]

    @pytest.mark.parametrize("streaming", [True, False])
    def test_a_client_that_leaves_frees_the_server(
        self, scripted: ScriptedServer, scripted_service: tuple[ScriptedServer, ServiceProcess], streaming: bool
    ) -> None:
        closed: list[bool] = []
        arrived = threading.Event()

        def wait(call: Call) -> None:
            if streaming:
                call.begin_stream()
                call.send("first")
            arrived.set()
            closed.append(call.wait_closed(DEADLINE_SECONDS / 2))

        scripted.chat = wait
        body = b'{"messages": [{"role": "user", "content": "x"}], "stream": %s}' % str(streaming).lower().encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", scripted_service[1].port)) as connection:
            connection.sendall(head.encode() + body)
            assert arrived.wait(10)
            if streaming:
                assert connection.recv(65_536)
        poll(lambda: closed == [True], 10, "the service to close the connection")

    def test_an_error_before_the_stream_is_an_ordinary_error(self, scripted: ScriptedServer, scripted_client: httpx.Client) -> None:
        scripted.chat = complain(400, "too long: maximum context length is 10")
        assert_error(chat(scripted_client, stream=True), 400, "maximum context length")


def listed(client: httpx.Client) -> list[str]:
    answer = client.get("/v1/models", timeout=10)
    assert answer.status_code == 200
    return [model["id"] for model in answer.json()["data"]]


def test_a_client_with_one_url_finds_the_name_of_its_chat_model(scripted: ScriptedServer, start: Callable[..., ServiceProcess]) -> None:
    """Some clients refuse to start where /v1/models does not list each of their models."""
    scripted.models = lambda call: call.answer(500, "")
    with start(GENERATION_URL=scripted.url).client() as client:
        assert "qmd-embed" in listed(client)
    scripted.reset()
    with start(GENERATION_URL=scripted.url).client() as client:
        assert {"served", "also-served", "qmd-embed", "qmd-rerank"} <= set(listed(client))


def test_a_url_that_leads_back_here(start: Callable[..., ServiceProcess]) -> None:
    port = free_port()
    with start(port, GENERATION_URL=f"http://127.0.0.1:{port}").client() as client:
        assert "qmd-embed" in listed(client)
        assert_error(chat(client), 400, "GENERATION_URL leads back")


def test_a_key_file_that_is_not_there(scripted: ScriptedServer, start: Callable[..., ServiceProcess], tmp_path: Any) -> None:
    with start(GENERATION_URL=scripted.url, GENERATION_API_KEY_FILE=str(tmp_path / "none")).client() as client:
        assert_error(chat(client), 503, "GENERATION_API_KEY_FILE")


def test_a_configured_model_wins(scripted: ScriptedServer, start: Callable[..., ServiceProcess]) -> None:
    with start(GENERATION_URL=scripted.url, GENERATION_MODEL="mine").client() as client:
        assert "mine" in listed(client)
        assert chat(client, model="also-served").headers["x-model"] == "mine"
        assert scripted.calls[0].body["model"] == "mine"
