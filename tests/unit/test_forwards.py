"""The vocabulary: what it means, and what each error says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest

from unit.build import MAC, declared
from virt_forward import ports
from virt_forward.errors import VirtForwardError
from virt_forward.metadata import forwards
from virt_forward.model import Declaration, Forward, HostAddress, PortForward, Range


def test_everything_a_document_can_say() -> None:
    declaration, errors = declared(
        f"""<vf:host ip="198.51.100.200"/>
        <vf:host mac="{MAC.upper()}" ip="2001:db8::200"/>
        <vf:portForward proto="tcp"><vf:range start="8080" to="80"/><vf:range start="443"/></vf:portForward>
        <!-- a comment --><?and an instruction?>
        <vf:portForward proto="udp" address="203.0.113.7" dev="enp1s0" source="192.0.2.0/24" mac="{MAC}">
          <vf:range start="5000" end="5020" to="6000" exclude="no"/>
          <vf:range start="5010" exclude="yes"/>
        </vf:portForward>
        <vf:portForward proto="sctp" address="2001:db8::1"/>""",
        ' isolate="yes"',
    )
    assert errors == ()
    assert declaration == Declaration(
        (
            PortForward("tcp", (Range(8080, 8080, 80), Range(443, 443, 443))),
            PortForward(
                "udp",
                (Range(5000, 5020, 6000), Range(5010, 5010, 5010, exclude=True)),
                ip_address("203.0.113.7"),
                "enp1s0",
                ip_network("192.0.2.0/24"),
                MAC,
            ),
            PortForward("sctp", address=ip_address("2001:db8::1")),
        ),
        (HostAddress(ip_address("198.51.100.200")), HostAddress(ip_address("2001:db8::200"), MAC)),
        isolate=True,
    )


def test_nothing_declared_is_no_error() -> None:
    assert declared("") == (Declaration(), ())
    assert declared("", ' isolate="no"') == (Declaration(), ())


def one_port(attributes: str) -> str:
    return f'<vf:portForward proto="tcp" {attributes}><vf:range start="80"/></vf:portForward>'


def one_range(attributes: str) -> str:
    return f'<vf:portForward proto="tcp"><vf:range {attributes}/></vf:portForward>'


PORT = "use a port number from 1 to 65535"
MAC_WANTED = "use six pairs of hexadecimal digits, as in 52:54:00:a0:8f:2c"
DEV = "use the name of a network interface, as in enp1s0"
UNICAST = "use a unicast address of this host that is not link-local"
OWN = "use the guest's own unicast address, not a loopback, link-local or multicast one"

# (what stands inside <forwards>, the element to be named, what is said of it)
ERRORS = [
    # elements
    ("<vf:port/>", "vf:port", "unknown element inside <vf:forwards>; allowed here: <host> or <portForward>"),
    ("<vf:range start='80'/>", "vf:range", "unknown element inside <vf:forwards>"),
    (
        '<portForward proto="tcp"><range start="80"/></portForward>',
        "portForward",
        "is not in the namespace urn:virt-forward:1; give it the prefix of its parent",
    ),
    ('<host ip="198.51.100.200"/>', "host", "give it the prefix of its parent"),
    (
        '<vf:portForward proto="tcp"><range start="80"/></vf:portForward>',
        "range",
        "give it the prefix of its parent",
    ),
    (
        '<vf:portForward proto="tcp" xmlns:o="urn:other"><o:range start="80"/></vf:portForward>',
        "o:range",
        "is not in the namespace urn:virt-forward:1",
    ),
    (
        '<vf:portForward proto="tcp"><vf:range start="80"/><vf:ports/></vf:portForward>',
        "vf:ports",
        "unknown element inside <vf:portForward>; allowed here: <range>",
    ),
    (
        '<vf:portForward proto="tcp"><vf:range start="80"><vf:x/></vf:range></vf:portForward>',
        "vf:x",
        "unknown element inside <vf:range>; allowed here: nothing",
    ),
    ('<vf:host ip="198.51.100.200"><vf:x/></vf:host>', "vf:x", "unknown element inside <vf:host>"),
    (f"80 {one_port('')}", "vf:forwards", "text is not allowed here; remove it"),
    (f"{one_port('')}\u00a0", "vf:forwards", "text is not allowed here"),
    (
        '<vf:portForward proto="tcp"><vf:range start="80">81</vf:range></vf:portForward>',
        "vf:range",
        "text is not allowed here; remove it",
    ),
    # attributes
    (one_port('port="80"'), "vf:portForward", 'unknown attribute "port"; known: address, dev, mac, proto'),
    (one_port('vf:dev="x"'), "vf:portForward", "unknown attribute"),
    (one_range('start="80" ende="81"'), "vf:range", 'unknown attribute "ende"; known: end, exclude, start'),
    ('<vf:host ip="198.51.100.200" name="a"/>', "vf:host", 'unknown attribute "name"; known: ip, mac'),
    ("<vf:host/>", "vf:host", 'attribute ip is missing; add ip="10.10.0.200"'),
    (one_range('end="80"'), "vf:range", 'attribute start is missing; add start="8080"'),
    (
        '<vf:portForward><vf:range start="80"/></vf:portForward>',
        "vf:portForward",
        'attribute proto is missing; add proto="tcp"',
    ),
    # protocols
    *(
        (
            f'<vf:portForward proto="{word}"><vf:range start="80"/></vf:portForward>',
            "vf:portForward",
            f'proto="{word}" is wrong: use tcp, udp or sctp',
        )
        for word in ("TCP", "icmp", "", "6", " tcp", "tcp; drop")
    ),
    # ports
    *(
        (one_range(f'start="{word}"'), "vf:range", f'start="{word}" is wrong: {PORT}')
        for word in ("0", "65536", "-1", "+80", "080", "80-90", "80.0", "", " 80", "http", "1e3", "99999999")
    ),
    (one_range('start="\u0668\u0660"'), "vf:range", PORT),
    (one_range('start="80;drop"'), "vf:range", f'start="80;drop" is wrong: {PORT}'),
    (one_range('start="80" end="0"'), "vf:range", f'end="0" is wrong: {PORT}'),
    (one_range('start="80" to="65536"'), "vf:range", f'to="65536" is wrong: {PORT}'),
    (one_range('start="80" exclude="true"'), "vf:range", 'exclude="true" is wrong: use yes or no'),
    (one_range('start="90" end="80"'), "vf:range", "end=80 is below start=90; exchange them"),
    (
        one_range('start="1000" end="2000" to="65000"'),
        "vf:range",
        "the guest's last port would be 66000, beyond 65535; lower to or shorten the range",
    ),
    (
        one_range('start="80"/><vf:range start="81" to="1" exclude="yes"'),
        "vf:range",
        "an excluded range goes nowhere; remove to",
    ),
    # interfaces and MAC addresses
    *(
        (one_port(f'dev="{word}"'), "vf:portForward", f"is wrong: {DEV}")
        for word in ("", ".", "..", "a/b", "a b", "sixteen-letters-", "enp1s0*", "a&quot;b", "a;b", "ä")
    ),
    *(
        (one_port(f'mac="{word}"'), "vf:portForward", f"is wrong: {MAC_WANTED}")
        for word in (
            "",
            "52:54:00:a0:8f",
            "52-54-00-a0-8f-2c",
            "525400a08f2c",
            "52:54:00:a0:8f:2g",
            f"{MAC}:1",
        )
    ),
    # addresses
    *(
        (one_port(f'address="{word}"'), "vf:portForward", f"is wrong: {said}")
        for word, said in (
            ("localhost", "use an IPv4 or IPv6 address"),
            ("203.0.113", "use an IPv4 or IPv6 address"),
            ("203.0.113.07", "use an IPv4 or IPv6 address"),
            ("203.0.113.0/24", "use an IPv4 or IPv6 address"),
            ("2001:db8::1%enp1s0", "use an IPv4 or IPv6 address"),
            ("[2001:db8::1]", "use an IPv4 or IPv6 address"),
            ("::ffff:203.0.113.7", "use the IPv4 address itself, 203.0.113.7"),
            ("0.0.0.0", "leave the attribute out to listen on every address"),
            ("::", "leave the attribute out to listen on every address"),
            ("::1", "the kernel cannot forward ::1; use 127.0.0.1 with localhost = true"),
            ("224.0.0.1", UNICAST),
            ("ff02::1", UNICAST),
            ("fe80::1", UNICAST),
            ("169.254.0.1", UNICAST),
            ("255.255.255.255", UNICAST),
        )
    ),
    *(
        (f'<vf:host ip="{word}"/>', "vf:host", f"is wrong: {said}")
        for word, said in (
            ("web", "use an IPv4 or IPv6 address"),
            ("0.0.0.0", OWN),
            ("127.0.0.1", OWN),
            ("::1", OWN),
            ("fe80::5054:ff:fea0:8f2c", OWN),
            ("169.254.1.1", OWN),
            ("239.1.2.3", OWN),
            ("255.255.255.255", "use the guest's own unicast address, not the broadcast address"),
        )
    ),
    *(
        (one_port(f'source="{word}"'), "vf:portForward", f"{said}")
        for word, said in (
            ("any", "use an IPv4 or IPv6 address"),
            ("192.0.2.0/", "use an address or a network in CIDR notation, as in 192.168.1.0/24"),
            ("192.0.2.0/024", "use an address or a network in CIDR notation"),
            ("192.0.2.0/255.255.255.0", "use an address or a network in CIDR notation"),
            ("192.0.2.0/-1", "use an address or a network in CIDR notation"),
            ("192.0.2.0/33", "the prefix length of an IPv4 network is 0 to 32"),
            ("2001:db8::/129", "the prefix length of an IPv6 network is 0 to 128"),
            ("192.0.2.1/24", "bits set beyond the prefix; use 192.0.2.0/24 or 192.0.2.1"),
            (
                "2001:db8::1/64",
                "bits set beyond the prefix; use 2001:db8::/64 or 2001:db8::1",
            ),
        )
    ),
    (
        one_port('address="203.0.113.7" source="2001:db8::/64"'),
        "vf:portForward",
        "address is IPv4 but source is IPv6; give both of one family",
    ),
    # every port
    (
        '<vf:portForward proto="tcp"/>',
        "vf:portForward",
        "forwards every port of the host; add a <range>, or say with address which address is meant",
    ),
    (
        '<vf:portForward proto="tcp"><vf:range start="22" exclude="yes"/></vf:portForward>',
        "vf:portForward",
        "forwards every port of the host",
    ),
    (
        one_range('start="80"/><vf:range start="1" end="100" exclude="yes"'),
        "vf:portForward",
        "every port is excluded; remove an exclude range, or the whole element",
    ),
    (
        '<vf:portForward proto="tcp" address="203.0.113.7"><vf:range start="1" end="65535" exclude="yes"/>'
        "</vf:portForward>",
        "vf:portForward",
        "every port is excluded",
    ),
]


@pytest.mark.parametrize(("inside", "element", "said"), ERRORS)
def test_error_names_the_element_its_line_and_what_is_right(inside: str, element: str, said: str) -> None:
    _, errors = declared(f"\n\n{inside}")
    line = 1 if element == "vf:forwards" else 4
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"line {line}: <{element}>: ")
    assert said in errors[0]


def ranges(*attributes: str) -> str:
    inside = "".join(f"<vf:range {each}/>" for each in attributes)
    return f'<vf:portForward proto="tcp">{inside}</vf:portForward>'


def gaps(count: int) -> list[str]:
    return [f'start="{100 + 2 * number}" exclude="yes"' for number in range(count)]


MANY: dict[str, Callable[[int], str]] = {
    "ranges": lambda count: ranges(*(f'start="{100 + 2 * number}"' for number in range(count))),
    "gaps": lambda count: ranges('start="1" end="60000"', *gaps(count - 1)),
    "sources": lambda count: "".join(one_port(f'source="192.0.2.{number}"') for number in range(count)),
}


@pytest.mark.parametrize("inside", MANY.values(), ids=MANY)
def test_number_of_ranges_is_limited(monkeypatch: pytest.MonkeyPatch, inside: Callable[[int], str]) -> None:
    monkeypatch.setattr(forwards, "MAX_PIECES", 10)
    assert declared(inside(10))[1] == ()
    (said,) = declared(inside(11))[1]
    assert said.startswith("<forwards>: has more than 10 separate ranges of ports")


def test_ranges_that_overlap_are_not_all_split_at_all_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document of half a megabyte would have 25 million pieces."""
    monkeypatch.setattr(forwards, "MAX_PIECES", 100)
    made, pieces = [], ports.pieces

    def counted(item: PortForward) -> Iterator[Forward]:
        for piece in pieces(item):
            made.append(piece)
            yield piece

    monkeypatch.setattr(ports, "pieces", counted)
    _, (said,) = declared(ranges(*['start="1" end="60000"'] * 1000, *gaps(1000)))
    assert "more than 100 separate ranges" in said
    assert len(made) <= 102


# What is wrong between elements that are right by themselves has no line of its own.
CONTRADICTIONS = [
    (one_port("") * 2, "<portForward>: 80/tcp and 80/tcp overlap on the host; give each host port once"),
    (
        one_range('start="8000" end="8090"') + one_range('start="8080" to="80"'),
        "<portForward>: 8000-8090/tcp and 8080:80/tcp overlap on the host",
    ),
    (
        one_port('address="203.0.113.7"') * 2,
        "<portForward>: 203.0.113.7:80/tcp and 203.0.113.7:80/tcp overlap",
    ),
    (
        '<vf:host ip="198.51.100.1"/><vf:host ip="198.51.100.2"/>',
        "<host>: 198.51.100.2 is a second IPv4 address for one NIC; keep one, or give each its mac",
    ),
    (
        f'<vf:host ip="2001:db8::1" mac="{MAC}"/><vf:host ip="2001:db8::2" mac="{MAC.upper()}"/>',
        "<host>: 2001:db8::2 is a second IPv6 address for one NIC",
    ),
]


@pytest.mark.parametrize(
    "inside",
    [
        '<vf:host ip="198.51.100.1"/>' + one_port('address="2001:db8::1"'),
        '<vf:host ip="2001:db8::1"/>' + one_port('source="192.0.2.0/24"'),
    ],
)
def test_host_of_one_family_says_nothing_of_the_other(inside: str) -> None:
    assert declared(inside)[1] == ()


@pytest.mark.parametrize(("inside", "said"), CONTRADICTIONS)
def test_contradiction_names_both_sides(inside: str, said: str) -> None:
    _, errors = declared(inside)
    assert len(errors) == 1, errors
    assert errors[0].startswith(said)


@pytest.mark.parametrize(
    "inside",
    [
        # one port twice, each time for somebody else
        one_port("") + one_port('address="203.0.113.7"'),
        one_port('dev="enp1s0"') + one_port('dev="wlan0"') + one_port(""),
        one_port('source="192.0.2.0/24"') + one_port('source="192.0.2.0/25"'),
        one_port("") + one_port("").replace("tcp", "udp"),
        one_range('start="80"') + one_range('start="81" end="90"'),
        # an excluded range of one element leaves its ports to another
        one_range('start="80" end="90"/><vf:range start="85" exclude="yes"') + one_range('start="85"'),
        # the last ports there are
        one_range('start="65535" to="1"'),
        one_range('start="1" end="65535"'),
        one_range('start="1" end="2" to="65534"'),
        # values at the edge of what is right
        one_port('dev="fifteen-letters"'),
        one_port('dev="-"'),
        one_port('dev="..."'),
        one_port('source="0.0.0.0/0"'),
        one_port('source="::/0"'),
        one_port('source="203.0.113.7"'),
        one_port('address="127.0.0.1"'),
        one_port('address="64:ff9b::203.0.113.7"'),
        f'<vf:host ip="198.51.100.1"/><vf:host ip="198.51.100.2" mac="{MAC}"/>',
        # a <host> of another NIC says nothing of this one's families
        '<vf:host ip="198.51.100.1" mac="52:54:00:00:00:02"/>'
        + one_port(f'address="2001:db8::1" mac="{MAC}"'),
    ],
)
def test_unusual_valid_input_is_accepted(inside: str) -> None:
    assert declared(inside)[1] == ()


def test_all_errors_are_told_in_the_order_of_their_lines() -> None:
    _, errors = declared(
        """<vf:host ip="nowhere" name="x"/>
        <vf:portForward proto="tcp" dev="a/b">
          <vf:range start="0" end="65536"/>
          <vf:range start="90" end="80"/>
          <vf:nothing/>
        </vf:portForward>
        text"""
    )
    lines = [int(error.split(":")[0].removeprefix("line ")) for error in errors]
    assert lines == [2, 2, 3, 4, 4, 5, 6, 1]


def test_value_in_a_message_stays_on_its_line_and_readable() -> None:
    _, errors = declared(one_range(f'start="8&#10;0&#x85;&#x2028;&#x202e;{"x" * 200}"'))
    assert errors[0].splitlines() == [errors[0]]
    assert errors[0].isprintable()
    assert len(errors[0]) < 200


def test_name_that_lxml_lets_pass_by_mistake_is_unknown() -> None:
    """An error about a name is forgotten if a warning follows, here about a relative namespace (lxml 4.9)."""
    try:
        error, _ = declared("<: p=''/><vf:portForward xmlns='t' proto='tcp'/>")[1]
    except VirtForwardError as refused:
        assert "not well-formed" in refused.messages[0]
        return
    assert error == "line 2: <:>: unknown element inside <vf:forwards>; allowed here: <host> or <portForward>"
