"""SPEC: what people write, and what they are told of what they should not have written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit import strategies
from unit.build import forward
from unit.test_text import ANYTHING, assert_harmless
from virt_forward.errors import UsageError
from virt_forward.metadata.spec import parse_spec
from virt_forward.model import Forward
from virt_forward.portspec import render


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("443", forward(443)),
        ("8080:80", forward(8080, to=80)),
        ("8080:80/tcp", forward(8080, to=80)),
        ("53/udp", forward(53, proto="udp")),
        ("5000-5020", forward(5000, 5020)),
        ("5000-5020:6000-6020/udp", forward(5000, 5020, to=6000, proto="udp")),
        ("5000-5000:6000", forward(5000, to=6000)),
        ("127.0.0.1:8080:80", forward(8080, to=80, address="127.0.0.1")),
        ("203.0.113.7:8080", forward(8080, address="203.0.113.7")),
        ("[2001:db8::1]:53:53/udp", forward(53, proto="udp", address="2001:db8::1")),
        ("[2001:db8::1]:443/sctp", forward(443, proto="sctp", address="2001:db8::1")),
        ("[203.0.113.7]:443", forward(443, address="203.0.113.7")),
    ],
)
def test_spec_is_parsed(word: str, meant: Forward) -> None:
    assert parse_spec(word).forward() == meant


@pytest.mark.parametrize(
    ("word", "wrong"),
    [
        ("", "a port is missing"),
        ("0", 'use a port number from 1 to 65535, not "0"'),
        ("8080:65536", 'use a port number from 1 to 65535, not "65536"'),
        ("http", 'use a port number from 1 to 65535, not "http"'),
        ("8080:", "a port is missing"),
        (":80", "a port is missing"),
        ("8080-", "a port is missing"),
        ("080", 'not "080"'),
        ("80/TCP", 'the protocol is "TCP"; use tcp, udp or sctp'),
        ("80/", 'the protocol is ""; use tcp, udp or sctp'),
        ("80/tcp/udp", 'the protocol is "tcp/udp"; use tcp, udp or sctp'),
        ("tcp/8080", 'the protocol comes last, as in "8080/tcp"'),
        ("5020-5000", "the range 5020-5000 ends before it starts; did you mean 5000-5020?"),
        ("5000-5020:6000", "5000-5020 and 6000 differ in length; the guest's ports would be 6000-6020"),
        ("80:8000-8010", "80 and 8000-8010 differ in length; the guest's ports would be 8000"),
        ("localhost:8080:80", 'the address is "localhost"; use an IPv4 or IPv6 address'),
        ("80:80:80", 'the address is "80"; use an IPv4 or IPv6 address'),
        ("0.0.0.0:80", 'the address is "0.0.0.0"; leave it out to listen on every address'),
        ("[::]:80", 'the address is "::"; leave it out to listen on every address'),
        ("[::1]:80", "the kernel cannot forward ::1"),
        ("2001:db8::1:443", "put an IPv6 address in brackets, as in [2001:db8::1]:443"),
        ("[2001:db8::1]443", "after an IPv6 address come ] and a colon"),
        ("[2001:db8::1", "after an IPv6 address come ] and a colon"),
    ],
)
def test_wrong_spec_is_told_with_what_would_be_right(word: str, wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec(word)
    assert wrong in caught.value.messages[0]
    assert "SPEC is [ADDRESS:]PORT" in caught.value.hint


@given(strategies.forwards())
def test_rendered_forward_is_parsed_again(item: Forward) -> None:
    assert parse_spec(render(item)).forward(item.dev, item.source, item.mac) == item


@given(ANYTHING | st.text("0123456789.:-[]/tcp", max_size=30))
def test_any_word_is_a_spec_or_told_harmlessly(word: str) -> None:
    try:
        parsed = parse_spec(word).forward()
    except UsageError as error:
        assert_harmless(error.messages[0])
    else:
        assert parse_spec(render(parsed)).forward() == parsed
