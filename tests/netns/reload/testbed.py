"""Section by section what a person has in nftables.conf, reloaded while somebody connects all the time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.netns import GUEST4, HOST4, Lab
from support.proc import eventually, run
from support.xml import domain, forwards, host_ip, port_forward

STREAM = Path(__file__).with_name("stream.py")
TABLE = ("table", "inet", "virt-forward")
METADATA = forwards(host_ip(GUEST4), port_forward("8080:80", "5000-5019"), port_forward("53", proto="udp"))
CONF = """\
flush ruleset

table inet filter {{
  chain input {{
    type filter hook input priority filter; policy drop;
    ct state {{ established, related }} accept
    iifname {{ lo, virbr0 }} accept
    meta l4proto {{ icmp, ipv6-icmp }} accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname virbr0 ip saddr 10.10.0.0/24 oifname {{ wlan0, enp1s0 }} accept
    oifname virbr0 ip daddr 10.10.0.0/24 iifname {{ wlan0, enp1s0 }} accept
  }}
}}

table inet nat {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {own}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    iifname virbr0 ip saddr 10.10.0.0/24 oifname {{ wlan0, enp1s0 }} masquerade
  }}
}}
{include}
"""
OWN = f"iifname {{ wlan0, enp1s0 }} tcp dport 8080 dnat ip to {GUEST4}:80"


@dataclass(frozen=True)
class Count:
    """What a stream of connections has seen; ``gap`` is in seconds."""

    made: int = 0
    refused: int = 0
    unanswered: int = 0
    gap: float = 0.0

    @property
    def lost(self) -> int:
        return self.refused + self.unanswered

    def __add__(self, other: Count) -> Count:
        return Count(
            self.made + other.made,
            self.refused + other.refused,
            self.unanswered + other.unanswered,
            max(self.gap, other.gap),
        )


class ReloadTestbed:
    """The lab with one guest and its forward, and the person's nftables.conf."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.conf = lab.dir / "nftables.conf"
        self.include = f'include "{lab.run_dir}/*.nft"'
        guest = lab.guest()
        guest.background([STREAM, "serve", "80"], lab.dir / "server.log")
        eventually(lambda: ":80 " in guest.run(["ss", "-Hltn"]).out, "the guest serves")
        self._numbers = itertools.count()

    def start(self) -> None:
        for operation in ("prepare", "started"):
            self.lab.hook("qemu", "web", operation, xml=domain("web", METADATA))

    def stop(self) -> None:
        for operation in ("stopped", "release"):
            self.lab.hook("qemu", "web", operation, "end", xml=domain("web", METADATA))

    def write(self, *, include: bool = True, own: bool = False) -> None:
        """Write nftables.conf, with the include line, or with the rule that a person wrote by hand."""
        self.conf.write_text(CONF.format(own=OWN if own else "", include=self.include if include else ""))

    def reload(self) -> None:
        self.lab.host.run(["nft", "-f", self.conf])

    def theirs(self) -> str:
        """Return the person's ruleset, byte for byte."""
        return self.lab.host.theirs()

    def there(self) -> bool:
        return self.lab.host.run(["nft", "-t", "list", *TABLE], check=False).status == 0

    def under_stream(self, what: Callable[[], None]) -> Count:
        """Do something while a client connects again and again."""
        number = next(self._numbers)
        log, stop = self.lab.dir / f"stream{number}.log", self.lab.dir / f"stop{number}"
        argv: list[str | Path] = [STREAM, HOST4, "8080", stop]
        stream = self.lab.client.background(argv, log)
        run(["sleep", "0.1"])
        try:
            what()
        finally:
            stop.touch()
        eventually(lambda: not stream.alive(), "the stream ends")
        return Count(**json.loads(log.read_text()))
