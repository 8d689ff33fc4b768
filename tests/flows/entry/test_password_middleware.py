"""A web application behind the middleware answers to nothing that has not the password."""

import asyncio
import base64
from typing import Any

import pytest

from flows.entry.password_middleware import Message, PasswordMiddleware, Receive, Send

PASSWORD = "sana15:secret"


async def behind(scope: Message, receive: Receive, send: Send) -> None:
    """An application that says that it was reached."""
    await send({"type": "reached"})


def answer(kind: str, **headers: str) -> list[dict[str, Any]]:
    """All that is sent in answer to a request with these headers."""
    sent: list[dict[str, Any]] = []

    async def ask() -> None:
        async def send(message: Message) -> None:
            sent.append(dict(message))

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        pairs = [(name.encode(), value.encode()) for name, value in {"host": "127.0.0.1:7860", **headers}.items()]
        await PasswordMiddleware(behind, PASSWORD)({"type": kind, "headers": pairs}, receive, send)

    asyncio.run(ask())
    return sent


def basic(credentials: str) -> str:
    """The header that a browser sends for these credentials."""
    return "Basic " + base64.b64encode(credentials.encode()).decode()


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_request_with_the_password_is_passed_on(kind: str) -> None:
    assert answer(kind, authorization=basic(PASSWORD)) == [{"type": "reached"}]
    assert answer(kind, authorization=basic(PASSWORD), origin="http://127.0.0.1:7860") == [{"type": "reached"}]


@pytest.mark.parametrize("headers", [{}, {"authorization": basic("sana15:other")}, {"authorization": "Basic"}])
def test_a_request_without_the_password_is_asked_for_it_and_a_web_socket_is_closed(headers: dict[str, str]) -> None:
    start, body = answer("http", **headers)
    assert start["status"] == 401
    assert dict(start["headers"])[b"www-authenticate"].startswith(b'Basic realm="sana15"')
    assert body["body"] == b"Unauthorized"
    assert answer("websocket", **headers) == [{"type": "websocket.close"}]


def test_a_request_from_another_site_is_refused_although_the_browser_adds_the_password() -> None:
    headers = {"authorization": basic(PASSWORD), "origin": "http://127.0.0.1:9999"}
    assert answer("http", **headers)[0]["status"] == 403
    assert answer("websocket", **headers) == [{"type": "websocket.close"}]


def test_the_start_and_end_of_the_server_need_no_password() -> None:
    assert answer("lifespan") == [{"type": "reached"}]
