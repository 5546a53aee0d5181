"""What hypothesis makes: documents good and bad, forwards and guests whose claims meet."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from xml.sax.saxutils import quoteattr

from hypothesis import strategies as st

from unit.build import LAN, MAC, uuid_of
from virt_forward.metadata.forwards import NAMESPACE
from virt_forward.model import (
    ORIGINS,
    PROTOS,
    Address,
    Endpoint,
    Forward,
    Guest,
    HostAddress,
    Nic,
    Phase,
    Subnet,
)

XML_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)

ports = st.integers(1, 65535)
near_ports = st.integers(-1, 65540).map(str)
ipv4 = st.integers(0, 2**32 - 1).map(lambda n: str(ip_address(n)))
ipv6 = st.integers(0, 2**128 - 1).map(lambda n: str(IPv6Address(n)))
sparse_ipv6 = st.lists(st.sampled_from(["0", "1", "ab", "ABCD"]), min_size=1, max_size=8).map(":".join)
special = st.sampled_from(
    [
        *("0.0.0.0", "::", "::1", "127.0.0.1", "255.255.255.255", "224.0.0.1", "ff02::1", "fe80::1"),
        *("169.254.0.1", "::ffff:1.2.3.4", "203.0.113.7", "2001:db8::1", "198.51.100.200"),
        *("64:ff9b::1.2.3.4", "::1.2.3.4"),
    ]
)
# Pieces of addresses put together at random find the odd corners of both grammars.
torn_ipv6 = st.lists(st.sampled_from(["", "1", "ffff", "12345", "g", "1.2.3.4", ":"]), max_size=9).map(
    ":".join
)
addresses = special | ipv4 | ipv6 | sparse_ipv6 | torn_ipv6
good_addresses = st.sampled_from(["203.0.113.7", "198.51.100.200", "2001:db8::1", "fd10:10::200"])
good_sources = st.sampled_from(["192.0.2.0/24", "2001:db8::/32", "192.0.2.1/24"])
prefixes = st.sampled_from(["", "/", "/0", "/8", "/24", "/32", "/33", "/64", "/128", "/129", "/08", "/x"])
sources = st.builds("{}{}".format, addresses, prefixes) | st.sampled_from(["192.0.2.0/24", "2001:db8::/32"])
macs = st.sampled_from([MAC, MAC.upper(), "52:54:00:a0:8f", "52-54-00-a0-8f-2c", MAC + ":"])
devs = st.sampled_from(["enp1s0", ".", "..", "...", "a" * 15, "a" * 16, "a/b", "a b", "x@y", "+", "-"])
words = st.sampled_from(["yes", "no", "tcp", "udp", "sctp", "80", "", " ", "TCP", "true"])
anything = XML_TEXT | words
yes_no = st.sampled_from(["yes", "no"])
few_ports = st.integers(1, 100).map(str)


def attributes(mess: bool, required: str, **known: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Write attributes; a mess leaves out what is required, adds what is unknown, and writes anything."""
    pairs = []
    for name, values in known.items():
        pair = st.tuples(st.just(name), values | values | anything if mess else values)
        pairs.append(pair if name == required and not mess else st.none() | pair)
    odd = st.sampled_from([None] * 9 + [("name", "x"), ("vf:proto", "tcp")]) if mess else st.none()
    return st.tuples(*pairs, odd).map(
        lambda found: "".join(f" {pair[0]}={quoteattr(pair[1])}" for pair in found if pair)
    )


def element(
    mess: bool, name: str, inner_attributes: st.SearchStrategy[str], inside: st.SearchStrategy[str]
) -> st.SearchStrategy[str]:
    prefix = st.sampled_from(["vf:"] * 9 + [""]) if mess else st.just("vf:")
    return st.builds("<{0}{1}{2}>{3}</{0}{1}>".format, prefix, st.just(name), inner_attributes, inside)


def documents_of(mess: bool) -> st.SearchStrategy[bytes]:
    """Make documents: any mess, or such as only a look at their meaning can find wrong."""
    nothing = st.sampled_from(["", " ", "\n", "<!-- c -->"] + ["x", "\u00a0", "<vf:x/>"] * mess)
    number = few_ports | near_ports if mess else few_ports
    mac, dev = (macs, devs) if mess else (st.just(MAC), st.just("enp1s0"))
    limit, source = (addresses, sources) if mess else (good_addresses, good_addresses | good_sources)
    ranges = element(
        mess, "range", attributes(mess, "start", start=number, end=number, to=number, exclude=yes_no), nothing
    )
    limits = attributes(
        mess, "proto", proto=st.sampled_from(PROTOS), address=limit, dev=dev, source=source, mac=mac
    )
    inside = st.lists(ranges | nothing, max_size=3).map("".join)
    port_forwards = element(mess, "portForward", limits, inside)
    hosts = element(mess, "host", attributes(mess, "ip", ip=limit, mac=mac), nothing)
    return st.builds(
        lambda isolate, inner: f'<vf:forwards xmlns:vf="{NAMESPACE}"{isolate}>{inner}</vf:forwards>'.encode(),
        attributes(mess, "", isolate=yes_no),
        st.lists(hosts | port_forwards | nothing, max_size=4).map("".join),
    )


documents = documents_of(mess=True) | documents_of(mess=False)

# Right values, few of each, so that claims meet often.
GATEWAYS: tuple[Address, ...] = (ip_address("198.51.100.1"), ip_address("2001:db8:10::1"))
LISTEN: tuple[Address | None, ...] = (
    *(None, None, None, None),
    *(ip_address("203.0.113.7"), ip_address("2001:db8::7"), GATEWAYS[0]),
)
SOURCES: tuple[Subnet | None, ...] = (
    None,
    ip_network("192.0.2.0/24"),
    ip_network("192.0.2.128/25"),
    ip_network("0.0.0.0/0"),
    ip_network("2001:db8:2::/48"),
)
DEVS = (None, "enp1s0", "wlan0")
SPANS = ((80, 80), (80, 80), (80, 83), (81, 81), (70, 90), (1, 1000), (500, 700), (1, 65535))


def _forward(proto: str, span: tuple[int, int], shift: int, *limits: object) -> Forward:
    start, end = span
    to = start + min(shift, 65535 - end)
    return Forward(proto, start, end, to, *limits)  # type: ignore[arg-type]


@st.composite
def forwards(draw: st.DrawFn) -> Forward:
    listen, source = draw(st.sampled_from(LISTEN)), draw(st.sampled_from(SOURCES))
    if listen and source and listen.version != source.version:
        source = None
    return _forward(
        draw(st.sampled_from(("tcp", "tcp", "tcp", "udp"))),
        draw(st.sampled_from(SPANS)),
        draw(st.sampled_from((0, 1, 1000))),
        listen,
        draw(st.sampled_from(DEVS)),
        source,
    )


names = st.sampled_from(["web", "db", 'say "hi"; drop', "naïve ☃", "a\nb", "x" * 200, "-", "#}"]) | st.text(
    max_size=20
)
origins = st.sampled_from(ORIGINS)
endpoints = st.integers(2, 250).map(
    lambda n: (ip_address(f"198.51.100.{n}"), ip_address(f"2001:db8:10::{n:x}"))
)


def distinct(found: list[Forward]) -> tuple[Forward, ...]:
    """Leave out what overlaps within one guest: the parser refuses that."""
    kept: list[Forward] = []
    for item in found:
        if not any(
            (item.proto, item.address, item.dev, item.source) == (k.proto, k.address, k.dev, k.source)
            and item.start <= k.end
            and k.start <= item.end
            for k in kept
        ):
            kept.append(item)
    return tuple(kept)


PHASES: tuple[Phase, ...] = ("running", "running", "running", "prepared", "restoring")
phases = st.sampled_from(PHASES)


@st.composite
def guests(draw: st.DrawFn, number: int | None = None, phase: Phase | None = None) -> Guest:
    """Make a guest; guests of different ``number`` never share an address."""
    at = draw(st.integers(2, 250)) if number is None else number + 2
    both = (
        Endpoint(ip_address(f"198.51.100.{at}"), "virbr0", MAC, draw(origins)),
        Endpoint(ip_address(f"2001:db8:10::{at:x}"), "virbr0", MAC, draw(origins)),
    )
    name = draw(names)
    return Guest(
        uuid_of(f"{at}"),
        name,
        draw(phases) if phase is None else phase,
        draw(st.booleans()),
        distinct(draw(st.lists(forwards(), max_size=5))),
        (),
        (Nic(MAC, "bridge", "virbr0"),),
        draw(st.sampled_from(((), (HostAddress(both[0].ip),)))),
        draw(st.sampled_from((both, both[:1], both[1:], ()))),
        draw(st.sampled_from((LAN, LAN[:1], ()))),
        draw(st.sampled_from((GATEWAYS, GATEWAYS[:1], ()))),
    )
