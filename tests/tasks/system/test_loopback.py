"""This machine's own servers are reached without the proxy that the environment names."""

import os
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import requests

from tasks.system.loopback import LOOPBACK_HOSTS, pass_by_proxies

NAMES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")


class Hello(BaseHTTPRequestHandler):
    """Answers every request with status 200."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a server of this machine."""
    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("given", [{}, {"no_proxy": "head"}, {"NO_PROXY": "head"}, {"no_proxy": "*"}])
def test_every_client_reaches_a_server_of_this_machine_past_a_dead_proxy(
    address: str, given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if not given:
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)
    pass_by_proxies(os.environ)
    assert httpx.get(address).status_code == 200
    assert requests.get(address, timeout=60).status_code == 200
    assert urllib.request.urlopen(address, timeout=60).status == 200


def test_hosts_that_are_listed_already_stay_and_a_second_call_adds_nothing() -> None:
    environment = {"NO_PROXY": "head, .lab"}
    pass_by_proxies(environment)
    expected = ",".join(("head", ".lab", *LOOPBACK_HOSTS))
    assert environment == {"no_proxy": expected, "NO_PROXY": expected}
    pass_by_proxies(environment)
    assert environment == {"no_proxy": expected, "NO_PROXY": expected}


def test_an_empty_list_counts_as_a_list_and_a_star_stays_alone() -> None:
    environment = {"no_proxy": "", "NO_PROXY": "*"}
    pass_by_proxies(environment)
    assert environment == {"no_proxy": ",".join(LOOPBACK_HOSTS), "NO_PROXY": "*"}
