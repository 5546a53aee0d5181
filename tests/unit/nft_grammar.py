"""All that our text may say to nft, line by line. What is not in here must never be written."""

from __future__ import annotations

import re

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
DEV = r"[A-Za-z0-9_.@+-]{1,15}"
IP = r"(\d{1,3}(\.\d{1,3}){3}|[0-9a-f:]*:[0-9a-f:.]*)"
NET = rf"{IP}(/\d{{1,3}})?"
PROTO = r"(tcp|udp|sctp)"
PORT = r"[1-9]\d{0,4}"
PORTS = rf"{PORT}(-{PORT})?"
NAME = r"[A-Za-z0-9_-]{1,80}"
SHARED = rf"from-{PROTO}-({PORT}|range)(-at-[0-9a-f_.]+)?"
TEXT = r'"[^"\\]{0,128}"'
TARGET = rf"({IP}|\[{IP}\])(:{PORT}|:{PROTO} dport map \{{ {PORT} : {PORT}(, {PORT} : {PORT})* \}})?"
TABLE = "inet virt-forward"

RULES = (
    # what translates
    rf'(iifname (!= )?"{DEV}" )?(ip6? saddr {NET} )?(ip6? daddr {IP} )?'
    rf"meta nfproto ipv[46] ({PROTO} dport {PORTS}|meta l4proto {PROTO}) "
    rf"ct label set 100 counter dnat ip6? to {TARGET}",
    # what counts
    rf'(ct direction (original iifname|reply oifname) "{DEV}" )?meta l4proto {PROTO} '
    rf"ct original proto-dst {PORTS}( ct original ip6? saddr {NET})?( ct original ip6? daddr {IP})? "
    r'counter return comment "forward \d+"',
    # what asks the most specific claim first
    rf'(iifname "{DEV}" )?(ip6? saddr {NET} )?(th dport {PORT}-{PORT} )?jump guest-{NAME}',
)

KEY = rf'({NET}|{PROTO}|{PORTS}|"{DEV}")'
ITEM = rf"{KEY}( \. {KEY})*( : (jump|goto) (guest|forward|from)-[A-Za-z0-9_.-]+)?"

LINES = (
    "",
    rf"# guest {UUID}",
    rf"# port {SHARED}",
    rf"# bridge {DEV}",
    rf"# gateway {IP}",
    rf"# lan {NET} {DEV}",
    rf"table {TABLE} \{{",
    r"\}",
    rf"\tchain ((guest|forward)-{NAME}|{SHARED}) \{{",
    rf"\t\tcomment {TEXT}",
    r"\t\}",
    *(rf"\t\t{rule}" for rule in RULES),
    rf"(add|delete) element {TABLE} [a-z0-9-]+ \{{ {ITEM}(, {ITEM})* \}}",
    rf"(flush|delete) chain {TABLE} ((guest|forward)-{NAME}|{SHARED})",
    rf"(add|delete) element {TABLE} revision \{{ \d+ \}}",
)
_LINE = re.compile("|".join(f"({line})" for line in LINES), re.ASCII)


def assert_spoken(text: str) -> None:
    """Fail on the first line that the grammar does not know."""
    # nft ends a line at "\n" alone; Python's splitlines() would know more ends than that.
    for line in text.split("\n"):
        assert _LINE.fullmatch(line), f"not in the grammar: {line!r}"
        assert line.replace("\t", "").isprintable()
