"""Whether forwards of running guests are answered: a client outside, a namespace with their addresses."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench import running_guests as guests
from support.netns import BRIDGE, CLIENT4, HOST4, PREFIX, UPLINK, Ns


class Traffic:
    """A client outside, and some guests of the crowd: a namespace with their addresses."""

    PROBED = (0, 1, 5000, 5001, 9998, 9999)
    """The first, middle and last guests with tcp and udp."""

    def __init__(self, undo: ExitStack) -> None:
        self._client, inside = (Ns(f"{PREFIX}{name}") for name in ("client", "guests"))
        undo.callback(inside.remove)
        undo.callback(self._client.remove)
        links = (
            f"link add {UPLINK} type veth peer name eth0 netns {self._client.name}\n"
            f"address add {HOST4}/24 dev {UPLINK}\nlink set {UPLINK} up\n"
            f"link add vnet type veth peer name eth0 netns {inside.name}\nlink set vnet master {BRIDGE} up\n"
        )
        subprocess.run(["ip", "-batch", "-"], input=links, text=True, check=True)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
        self._client.ip(f"address add {CLIENT4}/24 dev eth0", "link set eth0 up")
        addresses = map(guests.address, self.PROBED)
        inside.ip(*(f"address add {address}/16 dev eth0" for address in addresses), "link set eth0 up")
        inside.ip("route add default via 10.10.0.1")
        for number in self.PROBED:
            first, proto = guests.first_port(number), guests.proto(number)
            ports = map(guests.guest_port, range(first, first + guests.EACH))
            inside.serve(proto, *ports, name=f"g{number}", address=guests.address(number))

    def must_be_served(self) -> None:
        """Ask through forwards; exit unless each answers as the guest and port that it leads to."""
        for number, port in self._forwards():
            proto = guests.proto(number)
            answer = self._client.ask(HOST4, port, proto)
            if answer is None or (answer.name, answer.port) != (
                f"g{number}",
                guests.guest_port(port),
            ):
                raise SystemExit(f"{proto}/{port} of g{number}: {answer}")

    def must_be_gone(self) -> None:
        """Ask through the same forwards; exit if any answers."""
        for number, port in self._forwards():
            if not self._client.unanswered(HOST4, port, guests.proto(number)):
                raise SystemExit(f"{port} of g{number} is answered, though the guest is gone")

    def _forwards(self) -> Iterator[tuple[int, int]]:
        for number in self.PROBED:
            first = guests.first_port(number)
            yield from ((number, first), (number, first + guests.EACH - 1))
