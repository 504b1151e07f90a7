"""E-mail addresses, and IPv4 and IPv6 addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from ray_jobs.data.clean.context_words import Labels
from ray_jobs.data.clean.finding import Finding, FoldedText

_LOCAL_REVERSED = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}")
_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])")
_FILE_ENDINGS = {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "json", "html", "pdf", "txt"}
"""No top-level domains: `logo@2x.png` is a file."""

_IPV4 = re.compile(
    # The lookbehinds come after the first digit: a search for a digit is quicker than one for a lookbehind.
    r"[0-9](?<![0-9A-Za-z_.-].)(?<![0-9A-Za-z]/.)(?<![=<>~]=.)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_-]|\.[0-9A-Za-z])"
)
_IPV6 = re.compile(r"(?<![0-9A-Fa-f:.])[0-9A-Fa-f:]{3,41}(?![0-9A-Za-z_:])")
_WORD = re.compile(r"[A-Za-z_]")
_OTHER_VERSION = re.compile(r"(?<![0-9.])[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?!\.?[0-9])")


def find_emails(text: FoldedText) -> Iterator[Finding]:
    """Detector of `email`."""
    folded = text.folded
    at = folded.find("@")
    while at >= 0:
        domain = _DOMAIN.match(folded, at + 1)
        # The local part is read backwards from the sign, 64 characters at most (RFC 5321).
        if domain is not None and (local := _LOCAL_REVERSED.match(folded[max(0, at - 64) : at][::-1])):
            name = local[0][::-1].lstrip("./='*`|{#-")
            name = name.rsplit("=", 1)[-1].rsplit("//", 1)[-1]
            clone = name == "git" and folded.startswith(":", domain.end())
            if name and not clone and domain[0].rsplit(".", 1)[-1].lower() not in _FILE_ENDINGS:
                yield Finding("email", at - len(name), domain.end())
        at = folded.find("@", at + 1)


def find_ip_addresses(text: FoldedText) -> Iterator[Finding]:
    """Detector of `ip_address`, but for loopback addresses, network masks and version numbers."""
    folded = text.folded
    if folded.count(".") >= 3:
        labels: Labels | None = None
        for match in _IPV4.finditer(folded):
            labels = labels or Labels(text)
            if _is_address(match, text, labels):
                yield Finding("ip_address", *match.span())
    if "::" in folded or folded.count(":") >= 7:
        for match in _IPV6.finditer(folded):
            start, end = match.span()
            # A colon beside the address belongs to the sentence: `IP:fe80::1`.
            if folded.startswith(":", start) and not folded.startswith("::", start):
                start += 1
            elif _WORD.match(folded, start - 1, start):
                continue
            end -= folded.endswith(":", start, end) and not folded.endswith("::", start, end)
            if _is_ipv6(folded[start:end]):
                yield Finding("ip_address", start, end)


def _is_address(match: re.Match[str], text: FoldedText, labels: Labels) -> bool:
    try:
        address = IPv4Address(match[0])
    except AddressValueError:
        return False
    if address.is_loopback or address.is_unspecified or match[0].startswith("255."):
        return False
    if text.folded[max(0, match.start() - 3) : match.start()].endswith(("@", "://")):
        return True
    label = labels.of(*match.span(), versions=True)
    if label == "version":
        return False
    if label is None and _OTHER_VERSION.search(text.folded, max(0, match.start() - 40), match.start()):
        return False  # in a list of versions
    # Four short parts are more often a version or a section than an address.
    return len(match[0]) > 9 or label == "ip_address"


def _is_ipv6(written: str) -> bool:
    if written.count(":") < 2 or not any(character.isdigit() for character in written):
        return False
    groups = [group for group in written.split(":") if group]
    if len(groups) < 2 or all(len(group) <= 2 for group in groups):  # a time, or the bytes of a hardware address
        return False
    try:
        return not IPv6Address(written).is_loopback
    except AddressValueError:
        return False
