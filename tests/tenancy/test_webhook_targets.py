"""Where a webhook may be sent: addresses, names, certificates."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_jobs.errors import SpecError
from ray_jobs.storage import Store
from ray_jobs.tenancy import webhooks
from ray_jobs.tenancy.webhooks import EVENTS, Policy, Sender, targets
from tests.tenancy.webhook_receiver import (
    EVENT,
    HERE,
    Receiver,
    delivery,
    enqueue,
    make_sender,
    receiving,
    tick,
)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", "public"),
        ("2606:4700::1111", "public"),
        ("127.0.0.1", "private"),
        ("::1", "private"),
        ("10.1.2.3", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd12::1", "private"),
        ("fec0::1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("0.0.0.0", "never"),
        ("::", "never"),
        ("169.254.169.254", "never"),
        ("fe80::1%eth0", "never"),
        ("224.0.0.1", "never"),
        ("fd00:ec2::254", "never"),
        ("100.100.100.200", "never"),
        ("168.63.129.16", "never"),
        ("0.1.2.3", "never"),
        ("240.0.0.1", "never"),
        ("255.255.255.255", "never"),
        ("::127.0.0.1", "never"),
        ("::169.254.169.254", "never"),
        ("64:ff9b:1::a9fe:a9fe", "never"),
        ("4000::1", "never"),
        ("5f00::1", "never"),
        ("2001:db8::1", "private"),
    ],
)
def test_reach_of_an_address(address: str, expected: str) -> None:
    assert targets.reach(ip_address(address)) == expected


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**118 - 1))
def test_no_form_of_a_link_local_address_is_allowed(low: int, lower: int) -> None:
    v4 = IPv4Address((169 << 24) + (254 << 16) + low)
    forms: list[IPv4Address | IPv6Address] = [
        v4,
        IPv6Address(f"::ffff:{v4}"),
        IPv6Address(int(IPv6Address("64:ff9b::")) + int(v4)),
        IPv6Address((0x2002 << 112) + (int(v4) << 80) + low),
        IPv6Address((0xFE80 << 112) + lower),
    ]
    for form in forms:
        assert targets.reach(form) == "never"
        assert targets.refusal("https://h/", [IPv4Address("8.8.8.8"), form], HERE) is not None


@given(st.integers(0, 2**128 - 1))
def test_a_public_ipv6_address_is_in_2000_slash_3(number: int) -> None:
    assert targets.reach(IPv6Address(number)) != "public" or number >> 125 == 1


PUBLIC, PRIVATE = IPv4Address("8.8.8.8"), IPv4Address("10.0.0.1")


@pytest.mark.parametrize(
    ("scheme", "addresses", "policy", "reason"),
    [
        ("https", [PUBLIC], Policy(), None),
        ("https", [PRIVATE], Policy(), "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https", [PUBLIC, PRIVATE], Policy(), "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https", [PRIVATE], Policy(private=True), None),
        ("http", [PRIVATE], Policy(private=True), "KITAE_WEBHOOKS_INSECURE=on"),
        ("http", [PRIVATE], Policy(insecure=True), "KITAE_WEBHOOKS_PRIVATE=on"),
        ("http", [PRIVATE], HERE, None),
        ("http", [PUBLIC], HERE, "use https"),
        ("http", [PRIVATE, PUBLIC], HERE, "use https"),
    ],
)
def test_refusal_depends_on_scheme_address_and_policy(
    scheme: str, addresses: Sequence[IPv4Address], policy: Policy, reason: str | None
) -> None:
    found = targets.refusal(f"{scheme}://host/", addresses, policy)
    assert (found is None) if reason is None else (found is not None and reason in found)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/", "begins with 'ftp'"),
        ("host/path", "no scheme"),
        ("https:///path", "names no host"),
        ("https://user:pw@host/", "a user or a password"),
        ("https://host/#x", "fragment"),
        ("https://host/a b", "blanks"),
        ("https://host:99999/", "cannot be read"),
        ("https://host/" + "x" * 2048, "characters, more than"),
        ("http://127.0.0.1/", "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https://localhost/", "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https://2130706433/", "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https://0x7f.1/", "KITAE_WEBHOOKS_PRIVATE=on"),
        ("https://169.254.169.254/latest", "metadata"),
        ("https://[fe80::1]/", "link-local"),
        ("https://[::ffff:169.254.169.254]/", "metadata"),
    ],
)
def test_a_forbidden_url_cannot_be_added(store: Store, url: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        webhooks.add(store, "blue", url, EVENTS, Policy())
    assert list(store.list("webhooks/")) == []


def resolves(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> list[Sequence[str]]:
    """Resolve names in .example to each answer in turn, then always to the last; returns the unused answers."""
    left, real = list(answers), socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if not str(host).endswith(".example"):
            return real(host, port, *args, **options)
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return left


def test_a_name_is_checked_again_before_each_request(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = resolves(monkeypatch, ["8.8.8.8"], ["127.0.0.1"])
    webhooks.add(store, "blue", f"https://rebound.example:{receiver.port}/", EVENTS, Policy())
    assert left == [["127.0.0.1"]]
    event_id, outcomes = enqueue(store), list[str]()
    one = Sender(store, Policy(), on_outcome=outcomes.append)
    tick(one)
    assert receiver.got == []
    assert outcomes == ["failed"]
    assert delivery(store, event_id).state == "pending"
    answer = asyncio.run(one.send(webhooks.endpoints(store, "blue")[0], EVENT))
    assert (answer.why, "KITAE_WEBHOOKS_PRIVATE=on" in answer.detail) == ("refused", True)


def test_the_request_goes_to_the_checked_address(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name server changes its answer between queries."""
    left = resolves(monkeypatch, ["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"])
    webhooks.add(store, "blue", f"http://rebound.example:{receiver.port}/", EVENTS, HERE)
    enqueue(store)
    tick(make_sender(store))
    (request,) = receiver.got
    assert request.headers["host"] == f"rebound.example:{receiver.port}"
    assert left == [["169.254.169.254"]]


def test_the_next_address_is_tried_after_a_refused_connection(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolves(monkeypatch, ["127.0.0.2", "127.0.0.1"])
    webhooks.add(store, "blue", f"http://two.example:{receiver.port}/", EVENTS, HERE)
    event_id = enqueue(store)
    tick(make_sender(store))
    assert receiver.ids == [event_id]


def make_certificate(directory: Path, host: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{host}.pem", directory / f"{host}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize(("host", "state"), [("hooks.example", "delivered"), ("other.example", "pending")])
def test_the_certificate_must_match_the_host(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, state: str
) -> None:
    certificate, key = make_certificate(tmp_path, "hooks.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    resolves(monkeypatch, ["127.0.0.1"])
    with receiving(tls) as receiver:
        webhooks.add(store, "blue", f"https://{host}:{receiver.port}/", EVENTS, Policy(private=True))
        event_id = enqueue(store)
        tick(Sender(store, Policy(private=True)))
    assert delivery(store, event_id).state == state
    assert len(receiver.got) == (state == "delivered")
