"""SPEC, a forward in one word as for Docker: ``[address:]port[-end][:guestport[-end]][/proto]``."""

from __future__ import annotations

from virt_forward import text
from virt_forward.errors import UsageError
from virt_forward.metadata import values
from virt_forward.model import PROTOS, Address, Forward, Proto, Span, Subnet
from virt_forward.namedtuple import NamedTuple

SYNTAX = "[ADDRESS:]PORT[-END][:GUESTPORT[-END]][/PROTO]"
EXAMPLES = "8080:80, 443, 53/udp, 5000-5020:6000-6020/udp, 203.0.113.7:8080:80 or [2001:db8::1]:443"


class Spec(NamedTuple):
    """A SPEC: what the host listens on, and the guest's ports where they are given."""

    proto: Proto
    span: Span
    address: Address | None = None
    guest: Span | None = None

    def forward(
        self, dev: str | None = None, source: Subnet | None = None, mac: str | None = None
    ) -> Forward:
        """Return the forward that a SPEC means together with what has no place in it."""
        to = (self.guest or self.span).start
        return Forward(self.proto, *self.span, to, self.address, dev, source, mac)


def parse_spec(word: str) -> Spec:
    """Return a SPEC in typed values. Raises UsageError, which quotes the word and what is wrong in it."""
    try:
        return _parse(word)
    except values.Bad as error:
        raise UsageError(
            f"{text.quote(word)} is not a valid forward: {error}", f"SPEC is {SYNTAX}, as in {EXAMPLES}"
        ) from None


def _parse(word: str) -> Spec:
    ports, slash, proto = word.partition("/")
    if ports in PROTOS:
        # As list shows a port.
        raise values.Bad(f"the protocol comes last, as in {text.quote(f'{proto}/{ports}')}")
    address, rest = _address(ports)
    host, colon, guest = rest.partition(":")
    spec = Spec(_proto(proto) if slash else "tcp", _span(host), address, _span(guest) if colon else None)
    if spec.guest and _size(spec.guest) != _size(spec.span):
        last = spec.guest.start + _size(spec.span) - 1
        raise values.Bad(
            f"{spec.span} and {spec.guest} differ in length; "
            f"the guest's ports would be {Span(spec.guest.start, last)}"
        )
    return spec


def _size(span: Span) -> int:
    return span.end - span.start + 1


def _proto(word: str) -> Proto:
    try:
        return values.proto(word)
    except values.Bad as error:
        raise values.Bad(f"the protocol is {text.quote(word)}; {error}") from None


def _address(word: str) -> tuple[Address | None, str]:
    """Return the address of a SPEC without its protocol, and the rest of it."""
    if word.startswith("["):
        inside, bracket, rest = word[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise values.Bad("after an IPv6 address come ] and a colon, as in [2001:db8::1]:443")
        return _listen_address(inside), rest[1:]
    first, _, rest = word.partition(":")
    if word.count(":") > 2:
        raise values.Bad("it has too many colons; put an IPv6 address in brackets, as in [2001:db8::1]:443")
    if word.count(":") == 2 or "." in first:
        return _listen_address(first), rest
    return None, word


def _listen_address(word: str) -> Address:
    try:
        if values.address(word).is_unspecified:
            raise values.Bad("leave it out to listen on every address")
        return values.listen_address(word)
    except values.Bad as error:
        raise values.Bad(f"the address is {text.quote(word)}; {error}") from None


def _span(word: str) -> Span:
    first, dash, last = word.partition("-")
    span = Span(_port(first), _port(last if dash else first))
    if span.end < span.start:
        raise values.Bad(f"the range {word} ends before it starts; did you mean {span.end}-{span.start}?")
    return span


def _port(word: str) -> int:
    try:
        return values.port(word)
    except values.Bad as error:
        raise values.Bad(f"{error}, not {text.quote(word)}" if word else "a port is missing") from None
