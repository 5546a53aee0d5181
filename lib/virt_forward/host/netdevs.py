"""The interfaces that systemd-networkd makes."""

from virt_forward.addresses import networkd
from virt_forward.host import collect
from virt_forward.host.files import read_text
from virt_forward.namedtuple import NamedTuple


class Netdev(NamedTuple):
    """The .netdev file of an interface: its path and text, and its Kind= in lower case."""

    path: str
    kind: str
    text: str


def netdevs() -> dict[str, Netdev]:
    """Return by name the interfaces that networkd makes (systemd.netdev(5))."""
    found = {}
    for path in collect.networkd_paths(".netdev").values():
        text = read_text(path)
        for section, items in networkd.parse_ini(text):
            given = dict(items)
            if section == "NetDev" and given.get("Name"):
                found[given["Name"]] = Netdev(path, given.get("Kind", "").lower(), text)
    return found
