#!/usr/bin/python3
"""What it takes nft and the kernel to load a table, as ratios within one run: a table, and JSON with --json.

    sudo ./tests/bench/loading.py [--json] [--runs N]

plain    1,000 guests with 10 forwards each, against a map of 10,000 ports and nothing else
device   the same with every forward limited to a device, against plain
source   the same with every forward limited to a source network, against plain
few      10 guests with 1,000 forwards each, against plain
single   one guest with 10,000 forwards, against plain
shifted  one guest with 59,000 shifted ports of tcp and udp, in both families, against plain
whole    1,000 guests, each with every port of an address of its own, against plain

Each is the time of nft -f in a network namespace of its own. Our own text is not in it.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "lib"), str(REPO / "tests")]

from bench.hooks import report  # noqa: E402
from virt_forward.config import Config  # noqa: E402
from virt_forward.model import Endpoint, Forward, Guest, Subnet  # noqa: E402
from virt_forward.ruleset import table  # noqa: E402

TARGETS = {"device": 1.5, "source": 1.0, "single": 1.0, "shifted": 0.5}
COUNT = 10_000
BARE = """table inet bare {{ map ports {{ type inet_proto . inet_service : verdict
  elements = {{ {} }}
}}
}}
"""


def guest(number: int, forwards: Iterable[Forward]) -> Guest:
    """Return a running guest with an address of each family."""
    mac = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
    addresses = (ip_address("10.10.0.2") + number, ip_address("fd10:10::2") + number)
    return Guest(
        f"{number:08x}-0000-4000-8000-000000000000",
        f"g{number}",
        forwards=tuple(forwards),
        endpoints=tuple(Endpoint(ip, "virbr0", mac) for ip in addresses),
        lans=((ip_network("10.10.0.0/16"), "virbr0"),),
        gateways=(ip_address("10.10.0.1"),),
    )


def many(guests: int, dev: str | None = None, source: Subnet | None = None) -> list[Guest]:
    """Return so many guests that together have COUNT forwards."""
    each = COUNT // guests
    return [
        guest(
            number,
            (
                Forward("tcp", port, port, 1000 + port % each, dev=dev, source=source)
                for port in range(20000 + number * each, 20000 + number * each + each)
            ),
        )
        for number in range(guests)
    ]


def tables() -> dict[str, str]:
    """Return the texts that are loaded, by the names of their figures."""
    shifted = [Forward("tcp", 5000, 63999, 4000), Forward("udp", 5000, 63999, 4000)]
    whole = [
        guest(number, [Forward("tcp", 1, 65535, 1, address=ip_address("203.0.0.0") + number)])
        for number in range(1000)
    ]
    found = {
        "plain": many(1000),
        "device": many(1000, dev="enp1s0"),
        "source": many(1000, source=ip_network("192.0.2.0/24")),
        "few": many(10),
        "single": many(1),
        "shifted": [guest(1, shifted)],
        "whole": whole,
    }
    texts = {name: table.text(table.whole(guests, Config(), 1)) for name, guests in found.items()}
    elements = ", ".join(f"tcp . {port} : accept" for port in range(20000, 20000 + COUNT))
    return {"bare": BARE.format(elements), **texts}


def load(path: Path) -> float:
    """Return how many seconds a file takes to load."""
    before = time.perf_counter()
    subprocess.run(["unshare", "--net", "nft", "-f", path], check=True, timeout=120)
    return time.perf_counter() - before


def measure(runs: int) -> dict[str, float]:
    """Return every figure by its name."""
    with tempfile.TemporaryDirectory(prefix="vf-bench-") as folder:
        paths = {}
        for name, text in tables().items():
            paths[name] = Path(folder, f"{name}.nft")
            paths[name].write_text(text)
        took: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(runs):
            for name, path in paths.items():
                took[name].append(load(path))
    against = {name: "bare" if name == "plain" else "plain" for name in paths if name != "bare"}
    return {
        name: statistics.median(a / b for a, b in zip(took[name], took[other], strict=True))
        for name, other in against.items()
    }


if __name__ == "__main__":
    sys.exit(report("a table takes to load", "samples", measure))
