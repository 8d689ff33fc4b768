"""A server of Prefect that the environment names and that does not answer is named within seconds, in one line."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.entry import named_server
from flows.entry.named_server import refuse_silent_server
from flows.entry.password import API_VARIABLE
from tasks.system.errors import UserError


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port whose program takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def answering() -> Iterator[HTTPServer]:
    """A server that answers with the status that its address ends with."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(int(self.path.split("/")[1]))
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            pass

    asked: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def refusal(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    """The line that refuses the server at this address."""
    monkeypatch.setenv(API_VARIABLE, url)
    with pytest.raises(UserError) as raised:
        refuse_silent_server()
    line = str(raised.value)
    assert "\n" not in line and "make up" in line and f"unset {API_VARIABLE}" in line
    return line


def test_a_mute_server_is_named_within_the_seconds_that_it_is_given(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named_server.ANSWER_SECONDS <= 30
    monkeypatch.setattr(named_server, "ANSWER_SECONDS", 0.5)
    url = f"http://127.0.0.1:{silent_port}/api"
    assert f"Prefect's server {url} does not answer within" in refusal(monkeypatch, url)


def test_a_dead_server_and_an_address_of_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
    assert f"{url} cannot be reached" in refusal(monkeypatch, url)
    assert "is no address of a server" in refusal(monkeypatch, "127.0.0.1:4200/api")
    line = refusal(monkeypatch, url.replace("//", "//somebody:secret@"))
    assert url in line and "secret" not in line


def test_a_gateway_without_a_server_behind_it_is_named(answering: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    here = f"http://127.0.0.1:{answering.server_port}"
    assert f"{here}/502 answers with status 502" in refusal(monkeypatch, f"{here}/502")


@pytest.mark.parametrize("status", [200, 401, 404])
def test_a_server_that_answers_is_not_refused(
    answering: HTTPServer, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_VARIABLE, f"http://127.0.0.1:{answering.server_port}/{status}")
    refuse_silent_server()


def test_without_an_address_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_VARIABLE, raising=False)
    refuse_silent_server()
