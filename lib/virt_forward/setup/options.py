"""What the person asks for, as typed values; and what comes of it."""

from ipaddress import IPv4Interface, IPv4Network, IPv6Network, ip_interface
from typing import NamedTuple

from virt_forward import text
from virt_forward.errors import UsageError
from virt_forward.metadata import values
from virt_forward.model import Address

SPECIAL = [IPv4Network(net) for net in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")]
"""This network, loopback, link-local; multicast, and what is reserved, broadcast included (RFC 6890)."""
UNICAST6 = IPv6Network("2000::/3"), IPv6Network("fc00::/7")
"""Global and unique local addresses; all others are special or not assigned (RFC 4291, RFC 4193)."""


class Options(NamedTuple):
    """The options of ``virt-forward init``; None is "choose one", ``ipv6`` False a bridge without IPv6."""

    bridge: str | None = None
    mac: str | None = None
    subnet: IPv4Interface | None = None
    ipv6: IPv6Network | bool | None = None
    uplinks: tuple[str, ...] = ()
    dns: tuple[Address, ...] = ()
    lan: str | None = None
    yes: bool = False


class File(NamedTuple):
    """A file to be created, with mode 0644."""

    path: str
    text: str


class Plan(NamedTuple):
    """What sets up the bridge: new files, commands that make them take effect, and what is left to do.

    ``ruleset`` is text for the person's nftables ruleset, ``notes`` are sentences.
    """

    bridge: str
    files: tuple[File, ...]
    commands: tuple[tuple[str, ...], ...]
    ruleset: str = ""
    notes: tuple[str, ...] = ()


def bridge_name(word: str) -> str:
    """Return the name of a bridge. Raises UsageError."""
    try:
        name = values.dev(word)
    except values.Bad as error:
        raise UsageError(f"--bridge {text.quote(word)}: {error}") from None
    if not name[0].isalpha():
        raise UsageError(f"--bridge {text.quote(word)}: use a name that begins with a letter, as in vmbr0")
    return name


def device(option: str, word: str) -> str:
    """Return the name of an interface. Raises UsageError."""
    try:
        return values.dev(word)
    except values.Bad as error:
        raise UsageError(f"{option} {text.quote(word)}: {error}") from None


def mac(word: str) -> str:
    """Return the MAC address of a bridge. Raises UsageError."""
    try:
        found = values.mac(word)
    except values.Bad as error:
        raise UsageError(f"--mac {text.quote(word)}: {error}") from None
    if int(found[:2], 16) & 1:
        raise UsageError(f"--mac {found}: is a multicast address; use one whose first octet is even")
    if found == "00:00:00:00:00:00":
        raise UsageError(f"--mac {found}: no interface can have it; use one as in 52:54:00:a0:8f:2c")
    return found


def subnet(word: str) -> IPv4Interface:
    """Return the bridge's address and subnet; of a network, the first address. Raises UsageError."""
    try:
        found = ip_interface(word) if "/" in word else None
    except ValueError:
        found = None
    if not isinstance(found, IPv4Interface):
        raise UsageError(
            f"--subnet {text.quote(word)}: use an IPv4 network in CIDR notation, as in 10.10.0.0/24"
        )
    network = found.network
    if not 8 <= network.prefixlen <= 29:
        raise UsageError(f"--subnet {word}: use a prefix length from 8 to 29, so that guests have room")
    if any(network.overlaps(special) for special in SPECIAL):
        raise UsageError(f"--subnet {word}: use a network that guests can have, as in 10.10.0.0/24")
    if found.ip == network.broadcast_address:
        raise UsageError(f"--subnet {word}: is the broadcast address; use {network}")
    return IPv4Interface((network[1], network.prefixlen)) if found.ip == network[0] else found


def ipv6(word: str) -> IPv6Network | bool:
    """Return the IPv6 network of a bridge, False for ``none``. Raises UsageError."""
    if word == "none":
        return False
    try:
        found = IPv6Network(word, strict=False) if "/" in word else None
    except ValueError:
        found = None
    if found is None or not any(found.subnet_of(unicast) for unicast in UNICAST6):
        raise UsageError(f'--ipv6 {text.quote(word)}: use an IPv6 network, as in fd10:10::/64, or "none"')
    if found.prefixlen != 64:
        raise UsageError(
            f"--ipv6 {word}: use a prefix length of 64, which autoconfiguration needs (RFC 4862)"
        )
    return found


def nameserver(word: str) -> Address:
    """Return the address of a DNS server. Raises UsageError."""
    try:
        return values.guest_address(word)
    except values.Bad:
        raise UsageError(
            f"--dns {text.quote(word)}: use the address of a DNS server, as in 9.9.9.9"
        ) from None
