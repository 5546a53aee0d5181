#!/usr/bin/python3
"""How long virt-forward check takes, in seconds: prints a table, and JSON with --json.

    sudo ./tests/bench/check.py [--json] [--runs N]

one        one guest with one forward
forwards   100 guests with one forward each
dropped    the same, while the policy of a chain drops all packets: each is traced
rules      the same as forwards, on a host with 2,000 rules that every packet meets
both       2,000 rules and the policy

Everything happens in a network namespace and a run directory that are gone afterwards. The guests are
addresses in another namespace; nothing listens there, which their host is told at once.
"""

import contextlib
import ipaddress
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "lib"), str(REPO / "tests")]

from bench import hooks  # noqa: E402
from virt_forward.model import Endpoint, Forward, Guest  # noqa: E402

MAC = "52:54:00:00:00:01"
FIRST = ipaddress.IPv4Address("10.10.0.2")
GUESTS, RULES = 100, 2000
HOST = """\
link add enp1s0 type veth peer name outside netns {pid}
address add 192.0.2.1/24 dev enp1s0
link set enp1s0 up
link add virbr0 type bridge forward_delay 0
address add 10.10.0.1/24 dev virbr0
link set virbr0 up
link add vnet0 address fe:54:00:00:00:01 type veth peer name eth0 address {mac} netns {pid}
link set vnet0 master virbr0 up
"""
COMMAND = ["/usr/bin/python3", "-m", "virt_forward.cli", "check"]


@contextlib.contextmanager
def guests() -> Iterator[None]:
    """Make the host's links, and the namespace of the guests behind them."""
    with subprocess.Popen(["unshare", "--net", "sleep", "600"]) as holder:
        try:
            time.sleep(0.2)  # until it is in its namespace
            ip(HOST.format(pid=holder.pid, mac=MAC))
            addresses = "".join(f"address add {FIRST + n}/24 dev eth0\n" for n in range(GUESTS))
            inside = f"link set outside up\nlink set eth0 up\n{addresses}"
            enter = ["nsenter", f"--target={holder.pid}", "--net", "ip", "-batch", "-"]
            subprocess.run(enter, input=inside.encode(), check=True, timeout=20)
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
            yield
        finally:
            holder.terminate()


def ip(lines: str) -> None:
    """Run commands of ip(8)."""
    subprocess.run(["ip", "-batch", "-"], input=lines.encode(), check=True, timeout=20)


def nft(text: str) -> None:
    """Run commands of nft(8)."""
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True, timeout=20)


def guest_of(number: int) -> Guest:
    """Return the guest of a number."""
    forward = Forward("tcp", 8000 + number, 8000 + number, 80)
    uuid = f"be9c0000-0000-4000-8000-{number:012d}"
    endpoint = Endpoint(FIRST + number, "virbr0", MAC)
    return Guest(uuid, f"g{number}", forwards=(forward,), endpoints=(endpoint,))


def theirs(policy: str, rules: int) -> str:
    """Return a ruleset with some rules, none of which matches, and a policy."""
    body = "".join(f"ip saddr 198.51.{n // 250}.{n % 250} tcp dport {n} drop\n" for n in range(rules))
    return (
        "add table inet theirs\ndelete table inet theirs\n"
        "table inet theirs { chain c {\n"
        f"type filter hook forward priority 0; policy {policy};\n{body}}}\n}}\n"
    )


def check() -> float:
    """Return how long the command takes; that it finds problems is no error here."""
    before = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(REPO / "lib")}
    subprocess.run(COMMAND, env=env, check=False, capture_output=True, timeout=60)
    return time.perf_counter() - before


def measure(runs: int) -> dict[str, float]:
    """Return every figure by its name."""
    cases = {
        "one": (1, "accept", 0),
        "forwards": (GUESTS, "accept", 0),
        "dropped": (GUESTS, "drop", 0),
        "rules": (GUESTS, "accept", RULES),
        "both": (GUESTS, "drop", RULES),
    }
    found = {}
    with guests():
        for name, (count, policy, rules) in cases.items():
            hooks.keep(map(guest_of, range(count)))
            nft(theirs(policy, rules))
            check()
            found[name] = statistics.median(check() for _ in range(runs))
    return found


if __name__ == "__main__":
    sys.exit(hooks.report("check takes", "runs", measure))
