"""Looks whether the Prefect server that the environment names answers, before a flow begins.

Prefect's client would ask a server that accepts a connection and says nothing for six minutes.
"""

import os
from http import HTTPStatus

import httpx

from flows.entry.password import API_VARIABLE
from tasks.system.error_lines import without_password
from tasks.system.errors import UserError

ANSWER_SECONDS = 20.0
"""How long the server may take to answer. A busy one takes a few seconds."""
GATEWAY_ERRORS = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
"""The answers of a proxy, or of a load balancer, behind which no server is."""


def refuse_silent_server() -> None:
    """Raise UserError within ANSWER_SECONDS if `PREFECT_API_URL` names a server that does not answer.

    The request holds no password: any answer shows that a server is there.
    """
    url = os.environ.get(API_VARIABLE)
    if not url:
        return
    try:
        with httpx.stream("GET", f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS, follow_redirects=True) as answer:
            if answer.status_code not in GATEWAY_ERRORS:
                return
            fault = f"answers with status {answer.status_code}"
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        fault = "is no address of a server, such as http://127.0.0.1:4200/api"
    except httpx.ProxyError as error:
        fault = f"cannot be reached through the proxy of the environment ({error}); NO_PROXY lists what needs none"
    except httpx.TimeoutException:
        fault = f"does not answer within {ANSWER_SECONDS:.0f} seconds"
    except httpx.HTTPError as error:
        fault = f"cannot be reached ({error})"
    raise UserError(
        f"Prefect's server {without_password(url)} {fault}: start it (make up starts the project's own), or unset "
        f"{API_VARIABLE}, and the run has a temporary one"
    )
