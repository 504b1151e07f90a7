"""Allowed addresses of webhooks: never a metadata service, and private networks only if the policy allows them.

Owns the rules and the DNS query. Sends nothing.

A webhook makes this process send a request from inside the network to a URL chosen by a client (server-side request
forgery). So a host is resolved and checked when the endpoint is added and again before each request, and the request
goes to the checked address: a later change of the DNS answer has no effect.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal
from urllib.parse import urlsplit

from ray_jobs.errors import SpecError

Address = IPv4Address | IPv6Address
Reach = Literal["public", "private", "never"]

_MAX_URL_CHARACTERS = 2048
_NAT64 = ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ip_network("2000::/3")
_UNIQUE_LOCAL = ip_network("fc00::/7")
_THIS_NETWORK = ip_network("0.0.0.0/8")
_METADATA = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # most clouds; link-local as well
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's wire server, at a public address
    )
)


@dataclass(frozen=True)
class Policy:
    """The addresses that this installation allows."""

    private: bool = False
    """KITAE_WEBHOOKS_PRIVATE=on: also loopback and private addresses, for receivers within the company."""
    insecure: bool = False
    """KITAE_WEBHOOKS_INSECURE=on: plain http, and only to loopback and private addresses."""

    @classmethod
    def from_env(cls, environment: Mapping[str, str]) -> Policy:
        """The policy in environment variables. Raises SpecError for a value other than `on` and `off`."""
        switches = {}
        for name in ("private", "insecure"):
            variable = f"KITAE_WEBHOOKS_{name.upper()}"
            value = environment.get(variable) or "off"
            if value not in ("on", "off"):
                raise SpecError(f"{variable} is {value!r}; it must be on or off")
            switches[name] = value == "on"
        return cls(**switches)


def check_url(url: str) -> None:
    """Raise SpecError unless it is an http(s) URL with a host, and without a user, a password or a fragment."""
    finding = _why_unusable(url)
    if finding is not None:
        raise SpecError(f"{finding}; a webhook's URL is like https://hooks.example.com/kitae")


def reach(address: Address) -> Reach:
    """Class of an address: public (global IPv4, or global in 2000::/3), private, or never to be requested."""
    address = _within(address)
    if address in _METADATA or address.is_link_local or address.is_multicast or address.is_unspecified:
        return "never"
    if isinstance(address, IPv4Address):
        if address.is_reserved or address in _THIS_NETWORK:
            return "never"
        return "public" if address.is_global else "private"
    if address in _GLOBAL_UNICAST:
        return "public" if address.is_global else "private"
    # Anything else is an IPv4 address in another notation, or reserved: Python counts most of it as global.
    return "private" if address in _UNIQUE_LOCAL or address.is_loopback or address.is_site_local else "never"


def refusal(url: str, addresses: Sequence[Address], policy: Policy) -> str | None:
    """Why this URL, whose host has these addresses, is not allowed; None: it is."""
    reaches = {address: reach(address) for address in addresses}
    host = urlsplit(url).hostname
    for address, found in reaches.items():
        if found == "never":
            return f"{host} is {address}, which is link-local, a metadata service or no host address"
        if found == "private" and not policy.private:
            return f"{host} is {address}, within this network: KITAE_WEBHOOKS_PRIVATE=on allows that"
    if urlsplit(url).scheme != "https":
        if "public" in reaches.values():
            return f"{host} is outside this network, and http is not encrypted: use https"
        if not policy.insecure:
            return "http is not encrypted: use https, or KITAE_WEBHOOKS_INSECURE=on within this network"
    return None


def look_up(url: str) -> list[Address]:
    """Addresses of the URL's host, in the order to try them. Raises OSError if it has none."""
    parts = urlsplit(url)
    assert parts.hostname is not None, "validated by check_url"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{parts.hostname} is not a host name") from error
    return [ip_address(str(entry[4][0])) for entry in found]


def _why_unusable(url: str) -> str | None:
    if len(url) > _MAX_URL_CHARACTERS:
        return f"the URL has {len(url)} characters, more than {_MAX_URL_CHARACTERS}"
    if any(character.isspace() or not character.isprintable() for character in url):
        return "the URL has blanks or control characters in it"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"the URL cannot be read: {error}"
    if parts.scheme not in ("http", "https"):
        return f"the URL begins with {parts.scheme or 'no scheme'!r}, not with https"
    if not host:
        return "the URL names no host"
    if parts.username is not None or parts.password is not None:
        return "the URL has a user or a password in it, which a listing would show"
    if parts.fragment:
        return "the URL has a fragment (#…), which is never sent"
    return None


def _within(address: Address) -> Address:
    """The IPv4 address embedded in an IPv6 address, else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else address)
