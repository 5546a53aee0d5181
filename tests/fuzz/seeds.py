"""Where fuzzing starts: samples of real programs and of the unit tests, one tuple a target."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from ipaddress import ip_address
from xml.sax.saxutils import quoteattr

from netns.libvirtnet import DATA
from support.state import in_memory
from unit import test_flows, test_leases, test_network, test_networkd, test_records, test_sockets
from unit.build import MAC, domain_xml, forward, forwards_xml, guest
from unit.golden.case import CASES
from unit.test_admit import OURS
from unit.test_forwards import CONTRADICTIONS, ERRORS
from unit.test_probe import REPLY, dhcp, echo, framed
from virt_forward.config import Config
from virt_forward.ruleset import table
from virt_forward.state import records


def texts(*items: str) -> tuple[bytes, ...]:
    return tuple(item.encode() for item in items)


def golden(pattern: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for case in CASES for path in sorted(case.path.glob(pattern)))


def saved(pattern: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(DATA.glob(pattern)))


def neighbour(mac: str, ip: str, *, kind: int = 28, family: int = 2) -> bytes:
    """Write an rtnetlink message about a neighbour: NDA_DST, NDA_LLADDR, NDA_CACHEINFO."""
    address, hardware = ip_address(ip).packed, bytes.fromhex(mac.replace(":", ""))
    body = struct.pack("=BxxxiHBB", family, 3, 2, 0, 1)
    for number, value in ((1, address), (2, hardware), (3, bytes(16))):
        body += struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def domain_on(network: str, macs: Iterable[str]) -> bytes:
    """Write a guest with a forward and a NIC on a network for each of ``macs``."""
    source = f"<source network={quoteattr(network)}/>"
    nics = (f"<interface type='network'><mac address={quoteattr(mac)}/>{source}</interface>" for mac in macs)
    return domain_xml(FORWARD.decode(), "".join(nics))


FORWARD = forwards_xml('<vf:portForward proto="tcp"><vf:range start="80"/></vf:portForward>')

ARP = (REPLY, REPLY + bytes(18))
ECHO = (echo(), echo(kind=128))
DHCP = (
    framed(dhcp()),
    framed(dhcp(b"\x00\x00\x36\x04\xc6\x33\x64\x01\x35\x01\x05\x33\x04\x00\x00\x0e\x10\xff")),
    framed(b"\x46" + dhcp()[1:20] + bytes(4) + dhcp()[20:]),
    framed(dhcp(b"\x35\x01\x02\xff")),
)
NETLINK = (
    neighbour(MAC, "198.51.100.200") + neighbour(MAC, "2001:db8::1", family=10),
    neighbour(MAC, "198.51.100.200", kind=29),
)
MONITOR = texts(
    "delete table inet virt-forward\n# new generation 7 by process 812 (nft)\n",
    "add rule ip filter LIBVIRT_FWI oifname virbr0 reject\n"
    "delete rule inet virt-forward postrouting handle 7\n",
)

NETWORKD = texts(test_leases.NETWORKD % 1795387461264995, test_leases.NETWORKD % 0)
DNSMASQ = texts(test_leases.DNSMASQ)
NEIGHBOURS = texts(test_leases.NEIGHBOURS)
NETWORK_FILES = texts(
    test_networkd.PERSONS_FILE,
    "[Match]\nName=!br* vir?r[0-9]\nMACAddress=52-54-00-9A-8A-D1\nType=bridge\n"
    "[Address]\nAddress=10.0.0.1/8 \\\n",
    "[Match]\nKind=bridge\nName=\nName=virbr0\n[Network]\nAddress=0.0.0.0/24\nAddress=\nAddress=fd00::1/64\n",
)
DOMAINS = (
    *golden("*.xml"),
    domain_xml(FORWARD.decode()),
    domain_xml(),
    b"<domstatus>" + domain_xml() + b"</domstatus>",
)
FORWARDS = (
    *(forwards_xml(inside) for inside, _, _ in ERRORS),
    *(forwards_xml(inside) for inside, _ in CONTRADICTIONS),
    forwards_xml(
        '<vf:host ip="2001:db8::1"/><vf:portForward proto="sctp"><vf:range start="9"/></vf:portForward>'
    ),
)
NETWORKS = (*saved("*/*.xml"), f"<hookData>{test_network.NETWORK}{test_network.PORT}</hookData>".encode())
ARGUMENTS = (
    b"web\0prepare\0begin\0-",
    b"web\0stopped\0end\0<domain><uuid>9b8b5e27-6d3c-4f0e-9a3c-3b1f8f2a7c10</uuid>",
    b"default\0port-deleted\0begin\0-",
    b"web\0started\0begin\0urn:virt-forward:1",
)

SPECS = texts(
    *("8080:80", "443", "127.0.0.1:8080:80", "[2001:db8::1]:53:53/udp", "5000-5020:6000-6020/udp"),
    *("203.0.113.7:25/tcp", "9/sctp", "[2001:db8::1]:443"),
)
CONFIGS = (
    *golden("config.toml"),
    *texts(
        '[forward]\nuplinks = ["enp1s0", "wlan0"]\nlocalhost = true\nhairpin = "ports"\n',
        '[policy]\nreserved = ["tcp/22", "udp/53"]\non_error = "warn"\n[libvirt]\nadmit = false\nuri = "qemu:///s"\n',
        "forward.uplinks = []\n[x]\ny = 1979-05-27T07:32:00Z\nz = { a = 1.5e3, b = 0xff }\n",
    ),
)
RULESETS = texts(
    'flush ruleset\ninclude "/run/virt-forward/ruleset.nft"\n',
    "#!/usr/sbin/nft -f\nflush ruleset\ntable inet filter { }\ninclude '/etc/nftables.d/*.nft'\n",
    'include "/run/virt-forward/*.nft" # include "x"\nflush ruleset\n',
)

_GUESTS = (test_records.FULL, guest("db", forward(5432), forward(1, 65535, address="203.0.113.7")))
_INCLUDE = table.whole(_GUESTS, Config(), 7)
GUEST_RECORDS = texts(*map(records.dump_guest, _GUESTS))
NETWORK_RECORDS = texts(records.dump_network(test_records.NETWORK))
UNFINISHED = texts(
    json.dumps(
        {"version": 1, "guests": {_GUESTS[0].uuid: [None, GUEST_RECORDS[0].decode()]}, "taken": ["x.1"]}
    ),
    '{"version": 1, "guests": {}, "taken": []}',
)
DATABASES = (in_memory(*_GUESTS)._connection.serialize(),)
INCLUDES = texts(table.text(_INCLUDE), table.text(_INCLUDE._replace(paragraphs=())))

PROC_TCP = texts(test_sockets.TCP, test_sockets.TCP6)
PROC_UDP = texts(test_sockets.UDP)
PROC_SCTP = texts(test_sockets.SCTP)
CONNTRACK = (*test_flows.CAPTURED,)
IPTABLES = (*saved("*/*tables-save"), *texts(OURS))
NFT_CHAINS = saved("*/*.json")
LISTINGS = (*saved("*/*.nft"), *texts(*(case.saved() for case in CASES[:4])))
