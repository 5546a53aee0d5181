"""All that our text may say to nft, line by line. What is not in here must never be written."""

from __future__ import annotations

import re

from virt_forward.config import Config
from virt_forward.ruleset import maps, static

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
DEV = r"[A-Za-z0-9_.@+-]{1,15}"
IP = r"(\d{1,3}(\.\d{1,3}){3}|[0-9a-f:]*:[0-9a-f:.]*)"
NET = rf"{IP}(/\d{{1,3}})?"
PROTO = r"(tcp|udp|sctp)"
PORT = r"[1-9]\d{0,4}"
PORTS = rf"{PORT}(-{PORT})?"
NAME = r"[A-Za-z0-9_-]{1,80}"
SLOT = rf"{PROTO}-({PORT}|range)(-at-[0-9a-f_.]+)?"
BRIDGE = r"[A-Za-z0-9_-]{1,45}"
MAC = r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"
STATIC = r"(at|prerouting|output|prerouting-later|output-later|forward)"
TEXT = r'"[^"\\]{0,128}"'
SHIFTED = rf"({PROTO}|th) dport map \{{ {PORT} : {PORT}(, {PORT} : {PORT})* \}}"
TARGET = rf"({IP}|\[{IP}\])(:{PORT}|:{SHIFTED})?"
LISTED = rf"({PORTS}|\{{ {PORTS}(, {PORTS})* \}})"
PROTOS = rf"({PROTO}|\{{ {PROTO}(, {PROTO})* \}})"
KEPT = (
    r"((ip daddr != 127\.0\.0\.0/8 )?ip daddr != @gateway4 "
    r"|ip6 daddr != fe80::/10 ip6 daddr != ::1 ip6 daddr != @gateway6 )"
)
TABLE = "inet virt-forward"

RULES = (
    # what translates
    rf'(iifname != "{DEV}" )?(iifname "{DEV}" )?(ip6? saddr {NET} )?meta nfproto ipv[46] '
    rf"({PROTO} dport {LISTED}|meta l4proto {PROTOS}( th dport {LISTED})?) "
    rf"(ip6? daddr {IP} |{KEPT})fib daddr type local "
    rf"(ct label set 100 counter dnat ip6? to {TARGET}|counter goto to[46](-at)?(-dev)?)",
    # what counts
    rf'(ct direction (original iifname|reply oifname) "{DEV}" )?meta l4proto {PROTO} '
    rf"ct original proto-dst {PORTS}( ct original ip6? saddr {NET})?( ct original ip6? daddr {IP})? "
    r'counter return comment "forward \d+"',
    # what asks the most specific claim first
    rf'(iifname "{DEV}" )?(ip6? saddr {NET} )?(th dport {PORT}-{PORT} )?jump guest-{NAME}',
    r"jump at",
    # what masquerades
    rf"ip6? saddr {NET} masquerade",
    # lookups
    *(re.escape(each.lookup()) for each in maps.ALL if each.data == maps.VERDICT),
    r"ct status dnat ct label 100 goto ours",
    r"iifname != @uplinks iifname \. iifname != @own return",
    *map(re.escape, static.lookups(Config(), ["isolated"])["forward"]),
)

KEY = rf'({NET}|{PROTO}|{PORTS}|"{DEV}"|{MAC})'
ITEM = rf"{KEY}( \. {KEY})*( : ((jump|goto) (guest|forward|port|lan)-[A-Za-z0-9_.-]+|{IP} \. {PORT}))?"

LINES = (
    "",
    rf"# guest {UUID}",
    rf"# port {SLOT}",
    rf"# gateway {IP}",
    rf"# lan {DEV}",
    rf"# isolated {MAC}",
    r"# lookups",
    rf"add chain {TABLE} ((guest|forward)-{NAME}|port-{SLOT}|lan-{BRIDGE}|{STATIC}) \{{",
    rf"\tcomment {TEXT}",
    r"\}",
    *(rf"\t{rule}" for rule in RULES),
    rf"(add|delete) element {TABLE} [a-z0-9-]+ \{{ {ITEM}(, {ITEM})* \}}",
    rf"(flush|delete) chain {TABLE} ((guest|forward)-{NAME}|port-{SLOT}|lan-{BRIDGE})",
    rf"flush chain {TABLE} {STATIC}",
    rf"(add|delete) element {TABLE} revision \{{ \d+ \}}",
)
_LINE = re.compile("|".join(f"({line})" for line in LINES), re.ASCII)


def assert_spoken(text: str) -> None:
    """Fail on the first line that the grammar does not know."""
    # nft ends a line at "\n" alone; Python's splitlines() would know more ends than that.
    for line in text.split("\n"):
        assert _LINE.fullmatch(line), f"not in the grammar: {line!r}"
        assert line.replace("\t", "").isprintable()
