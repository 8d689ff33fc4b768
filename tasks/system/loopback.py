"""Keeps what goes to this machine's own servers from a proxy that the environment names.

A proxy would learn the servers' password. It answers for an address that only this machine has with an error, or not
at all.
"""

from collections.abc import MutableMapping

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
PROXY_EXCEPTIONS = ("no_proxy", "NO_PROXY")
"""The variables that list hosts which are reached without a proxy. Python's libraries prefer the first."""


def pass_by_proxies(environment: MutableMapping[str, str]) -> None:
    """Add this machine's own addresses to the hosts that are reached without a proxy.

    Call this before a client of HTTP is made. What the variables list already stays. Where only one of them is set, the
    other one gets its list too, since a library that prefers it would otherwise read a shorter list.
    """
    given = [environment[name] for name in PROXY_EXCEPTIONS if name in environment]
    for name in PROXY_EXCEPTIONS:
        text = environment.get(name, given[0] if given else "")
        hosts = [host.strip() for host in text.split(",") if host.strip()]
        if "*" not in hosts:  # a star stands for every host, and for some libraries only while it stands alone
            environment[name] = ",".join(dict.fromkeys((*hosts, *LOOPBACK_HOSTS)))
