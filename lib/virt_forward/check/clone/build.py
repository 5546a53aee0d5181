"""Building the clone around this process: links, addresses, routes, sysctls and rulesets."""

import time
from collections.abc import Iterable

from virt_forward.check import rules
from virt_forward.check.clone import namespace, tables
from virt_forward.check.clone.host_state import HostState
from virt_forward.check.clone.plan import Plan
from virt_forward.check.clone.tables import Segment
from virt_forward.check.rules import Chain
from virt_forward.errors import VirtForwardError
from virt_forward.host import interfaces, nft
from virt_forward.host.files import read_text
from virt_forward.host.process import run
from virt_forward.text import output

PORT_SECONDS = 1.5
"""How long a bridge port may take; one that is down on the host stays so."""


def wire(built: Plan) -> list[str]:
    """Make links, addresses, routes and sysctls; return what failed, in words."""
    failed = []
    for path, value in _QUIET:
        failed += write(path, value)
    with namespace.outside():
        for path, value in _SILENT:
            failed += write(path, value)
    where = namespace.outside_path()
    _ip([words.replace("@outside@", where) for words, _ in built.links])
    present = interfaces.device_names()
    again = [rest for _, rest in built.links if rest.split()[2] not in present]
    failed += _ip([words.replace("@outside@", where) for words in again])
    with namespace.outside():
        _ip([f"link set {name} up" for name in interfaces.device_names()])
    for path, value in built.sysctls:
        failed += write(path, value)
    failed += _ip(built.configure)
    for version in (4, 6):
        failed += _batch(["ip", f"-{version}"], (line for number, line in built.rules if number == version))
    if built.vlans:
        failed += _batch(["bridge"], built.vlans)
    for path, value in _PROMPT:
        write(path, value)
    _wait_for_ports(sum(" master " in line for line in built.configure))
    return failed


def _wait_for_ports(count: int) -> None:
    """Wait until bridges forward from and to their ports; the kernel enables them in the background."""
    until = time.monotonic() + PORT_SECONDS
    while count and time.monotonic() < until:
        shown = run(["bridge", "link", "show"]).stdout
        if shown.count(" state forwarding ") >= count:
            return
        time.sleep(0.005)


_QUIET = (
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/router_solicitations", "0"),
)
_SILENT = (("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1"))
_PROMPT = (("ipv4/icmp_ratelimit", "0"), ("ipv6/icmp/ratelimit", "0"))
"""Sysctls of the clone, of what is outside of it, and of the clone again once it is built."""


def write(path: str, value: str) -> list[str]:
    """Set a sysctl below /proc/sys/net; return what failed, in words. One that does not exist is no error."""
    file = f"/proc/sys/net/{path}"
    if read_text(file).split() == value.split():
        return []
    try:
        with open(file, "w", encoding="ascii") as opened:
            opened.write(value)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{path.replace('/', '.')} cannot be set: {error.strerror}"]
    return []


def _ip(lines: Iterable[str]) -> list[str]:
    return _batch(["ip"], lines)


def _batch(program: list[str], lines: Iterable[str]) -> list[str]:
    text = "".join(f"{line}\n" for line in lines)
    if not text:
        return []
    result = run([*program, "-force", "-batch", "-"], text)
    if result.status == 127:
        raise VirtForwardError(result.stderr)
    words = (line for line in result.stderr.splitlines() if line and not line.startswith("Command failed"))
    return [output(line) for line in words if "File exists" not in line]


def load(host: HostState) -> list[tuple[str, str]]:
    """Load the rulesets; return the tables that do not load, each with the reason."""
    failed = []
    for segment in tables.segments(host):
        error = _load_one(segment, host)
        if error and len(segment.tables) > 1:
            single = ((part, _load_one(part, host)) for part in tables.alone(segment, host))
            failed += [(" ".join(part.tables[0]), why) for part, why in single if why]
        elif error:
            failed.append((" ".join(segment.tables[0]), error))
    return failed


def _load_one(segment: Segment, host: HostState) -> str:
    result = run(segment.argv, segment.text, nft.TIMEOUT)
    if result.status:
        return output(result.stderr) or f"exit status {result.status}"
    if segment.argv != tables.NFT and not segment.tables[0][0].startswith("legacy"):
        return _compare(segment.tables[0], host)
    return ""


def _compare(key: tuple[str, str], host: HostState) -> str:
    """Compare a table that iptables has restored with the host's; delete it if it is another.

    iptables prints rules that nft has added to its tables, but leaves out what it does not know.
    """
    listed = run(["nft", "-a", "list", "table", *key], timeout=nft.TIMEOUT).stdout
    (theirs,) = [table for table in rules.parse(host.ruleset) if table.key == key]
    (copied,) = rules.parse(listed) or [theirs]
    if all(_texts(chain) == _texts(copied.chains.get(name)) for name, chain in theirs.chains.items()):
        return ""
    run(["nft", "delete", "table", *key])
    return "iptables does not print all of its rules"


def _texts(chain: Chain | None) -> list[str]:
    return [rule.text for rule in chain.rules] if chain else []
