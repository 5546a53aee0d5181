"""Records: what is written is what is read, and anything else is told apart."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unit import strategies as make
from unit.build import MAC, UUID, forward, guest
from virt_forward.errors import StateError
from virt_forward.model import Guest, HostAddress, Network, Nic, Reservation
from virt_forward.state.records import dump_guest, dump_network, load_guest, load_network

FULL = guest(
    "web",
    forward(8080, to=80),
    forward(
        5000, 5020, to=6000, proto="udp", address="203.0.113.7", dev="enp1s0", source="192.0.2.0/24", mac=MAC
    ),
)._replace(
    conflicts=((forward(22), "because"),),
    gateways=(ip_address("198.51.100.1"), ip_address("2001:db8:10::1")),
    nics=(Nic(MAC, "network", "default"), Nic("", "user", "")),
    hosts=(HostAddress(ip_address("198.51.100.200")), HostAddress(ip_address("2001:db8::1"), MAC)),
)

NETWORK = Network(
    "default",
    UUID,
    "virbr1",
    "nat",
    (ip_network("192.0.2.0/24"), ip_network("2001:db8::/64")),
    (Reservation(ip_address("192.0.2.9"), MAC, None), Reservation(ip_address("192.0.2.8"), None, "web")),
)


@given(make.guests())
def test_guest_comes_back_as_it_was(item: Guest) -> None:
    assert load_guest(dump_guest(item), "x") == item


def test_all_of_a_guest_and_of_a_network_comes_back() -> None:
    assert load_guest(dump_guest(FULL), "x") == FULL
    assert load_network(dump_network(NETWORK), "x") == NETWORK
    assert load_network(dump_network(Network("n", UUID, "b")), "x") == Network("n", UUID, "b")


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value inside a document."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [at, *(path for key in keys for path in paths(value[key], (*at, key)))]


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    *way, last = path
    inner = copy
    for key in way:
        inner = inner[key]
    if value is DELETE:
        del inner[last]
    else:
        inner[last] = value
    return copy


DELETE = object()
scalars = st.none() | st.booleans() | st.integers() | st.floats() | make.XML_TEXT
EVIL: tuple[Any, ...] = (
    *("", "x", "80;drop", "a\nb", '"; flush ruleset', "2001:db8::1%a } accept", "2001:db8::%a }/64"),
    *("\ud800", "../../etc", 0, -1, 65536, 65535, 1.5, True, None, [], {}, [[]], {"a": 1}),
)
json_values = st.recursive(
    scalars | st.sampled_from(EVIL),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def assert_guest_or_state_error(text: str) -> None:
    try:
        item = load_guest(text, "guests/x.json")
    except StateError as error:
        assert str(error).startswith("guests/x.json: is no record of ours: ")
        assert "\n" not in str(error)
    else:
        # What is taken for a guest is wholly one: it can be written and read again.
        assert load_guest(dump_guest(item), "x") == item
        dump_guest(item).encode()


@settings(max_examples=200)
@given(json_values)
def test_any_json_is_a_guest_or_a_state_error(value: Any) -> None:
    assert_guest_or_state_error(json.dumps(value))


@pytest.mark.parametrize(
    "path", paths(json.loads(dump_guest(FULL)))[1:], ids=lambda path: ".".join(map(str, path))
)
def test_any_value_in_any_place_is_a_guest_or_a_state_error(path: tuple[Any, ...]) -> None:
    document = json.loads(dump_guest(FULL))
    for value in (*EVIL, DELETE):
        assert_guest_or_state_error(json.dumps(changed(document, path, value)))


@pytest.mark.parametrize(
    "path", paths(json.loads(dump_network(NETWORK)))[1:], ids=lambda path: ".".join(map(str, path))
)
def test_any_value_in_any_place_is_a_network_or_a_state_error(path: tuple[Any, ...]) -> None:
    document = json.loads(dump_network(NETWORK))
    for value in (*EVIL, DELETE):
        try:
            network = load_network(json.dumps(changed(document, path, value)), "x")
        except StateError:
            continue
        assert load_network(dump_network(network), "x") == network


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"version": 2}',
        '"text"',
        "[" * 100_000,
        '{"version": ' + "1" * 5000 + "}",
        dump_guest(FULL)[:-40],
        "\0",
    ],
    ids=lambda text: text[:12],
)
def test_damaged_record_is_a_state_error(text: str) -> None:
    for load in (load_guest, load_network):
        with pytest.raises(StateError, match=r"^x: is no record of ours: "):
            load(text, "x")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("uuid",), "x; flush ruleset"),
        (("uuid",), f"{UUID}\n"),
        (("forwards", 0, "proto"), "icmp"),
        (("forwards", 0, "dev"), 'a" accept'),
        (("forwards", 0, "end"), 79),
        (("forwards", 1, "to"), 65530),
        (("forwards", 0, "start"), True),
        (("forwards", 1, "source"), "192.0.2.1/24"),
        (("endpoints", 0, "bridge"), "a b"),
        (("endpoints", 0, "origin"), "hearsay"),
        (("endpoints", 0, "ip"), "2001:db8::1%eth0"),
        (("lans", 0, "subnet"), "2001:db8::%a }/128"),
        (("hosts", 1, "mac"), "x"),
        (("gateways", 0), "2001:db8::1%a }"),
        (("phase",), "dead"),
    ],
)
def test_unsafe_text_is_refused_before_it_reaches_nft(path: tuple[Any, ...], value: Any) -> None:
    document = json.loads(dump_guest(FULL))
    with pytest.raises(StateError):
        load_guest(json.dumps(changed(document, path, value)), "x")


def test_record_without_origins_is_trusted_the_least() -> None:
    """As versions wrote it that kept none."""
    fields = json.loads(dump_guest(guest("web", forward(80))))
    fields["seats"] = fields.pop("endpoints")
    for one in fields["seats"]:
        del one["origin"]
    assert [one.origin for one in load_guest(json.dumps(fields), "old").endpoints] == ["neighbour"]
