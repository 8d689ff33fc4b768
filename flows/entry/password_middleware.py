"""Puts the project's password before a web application that runs in this process, as HTTP's basic authentication."""

import base64
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from flows.entry.password import USER

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class PasswordMiddleware:
    """An ASGI application that passes on to another only what has the right credentials, web sockets included.

    A browser adds the password to every request to the page's address, whichever site the request comes from. So what
    says that it comes from another site is refused too.
    """

    def __init__(self, app: Application, credentials: str) -> None:
        self.app = app
        self.authorization = b"Basic " + base64.b64encode(credentials.encode())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass on a request, or refuse it. The start and end of the server (`lifespan`) have no credentials."""
        if scope["type"] == "lifespan" or (refusal := self._refusal(dict(scope["headers"]))) is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before it is accepted, which the browser sees as status 403
        else:
            headers = [(b"www-authenticate", f'Basic realm="{USER}", charset="UTF-8"'.encode())]
            body = refusal.phrase.encode()
            headers = [*headers, (b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": refusal, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _refusal(self, headers: dict[bytes, bytes]) -> HTTPStatus | None:
        """Why a request with these headers is refused, or None."""
        if not secrets.compare_digest(headers.get(b"authorization", b""), self.authorization):
            return HTTPStatus.UNAUTHORIZED
        origin = headers.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != headers.get(b"host"):
            return HTTPStatus.FORBIDDEN
        return None
