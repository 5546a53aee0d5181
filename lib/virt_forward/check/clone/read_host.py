"""Reading the host for its clone: the edge. Nothing is changed."""

from collections.abc import Iterable, Iterator

from virt_forward.check import rules
from virt_forward.check.clone import host_state
from virt_forward.check.clone.host_state import HostState, Link, XtTable
from virt_forward.errors import VirtForwardError
from virt_forward.host import nft
from virt_forward.host.files import list_directory, read_text
from virt_forward.host.process import Result, run
from virt_forward.text import output

MAX_RULESET = 64 << 20
"""The longest listing that is copied, in characters."""

_SAVERS = {"ip": "iptables-nft", "ip6": "ip6tables-nft", "bridge": "ebtables-nft", "arp": "arptables-nft"}
_LEGACY = {"ip": ("iptables-legacy", "ip_tables_names"), "ip6": ("ip6tables-legacy", "ip6_tables_names")}
_BY_LINK = {
    "ipv4": (
        *("forwarding", "rp_filter", "accept_local", "route_localnet", "src_valid_mark"),
        "accept_source_route",
    ),
    "ipv6": ("forwarding", "force_forwarding", "disable_ipv6"),
}
_OTHERS = (
    *("ipv4/fwmark_reflect", "ipv6/fwmark_reflect", "ipv4/ip_nonlocal_bind", "ipv6/ip_nonlocal_bind"),
    *(f"netfilter/nf_conntrack_{name}" for name in ("tcp_loose", "tcp_be_liberal", "checksum", "helper")),
)


def read() -> HostState:
    """Return the state of this network namespace. Raises VirtForwardError where a program fails."""
    links = host_state.parse_links(_words("ip", "-d", "-j", "address", "show"))
    listed = run(["nft", "-a", "list", "ruleset"], timeout=nft.TIMEOUT)
    if listed.status:
        raise _failure("nft", listed)
    if len(listed.stdout) > MAX_RULESET:
        raise VirtForwardError(f"the ruleset is longer than {MAX_RULESET >> 20} million characters")
    tables = rules.parse(listed.stdout)
    managed = host_state.managed_tables(listed.stderr)
    managed |= {table.key for table in tables if table.uses_xtables or table.is_iptables}
    return HostState(
        links,
        tuple(route for version in (4, 6) for route in _routes(version)),
        tuple(rule for version in (4, 6) for rule in _rules(version)),
        tuple(_sysctls(links)),
        listed.stdout,
        managed,
        tuple(_saved(sorted({family for family, _ in managed}))),
        tuple(_legacy()),
        tuple(_vlans(links)),
    )


def _words(*argv: str) -> str:
    result = run(argv)
    if result.status:
        raise _failure(argv[0], result)
    return result.stdout


def _failure(program: str, result: Result) -> VirtForwardError:
    return VirtForwardError(f"{program}: {output(result.stderr) or f'exit status {result.status}'}")


def _routes(version: int) -> Iterable[host_state.Route]:
    # Without a table of that family, ip prints half of a list and fails.
    return host_state.parse_routes(
        run(["ip", "-j", f"-{version}", "route", "show", "table", "all"]).stdout, version
    )


def _rules(version: int) -> Iterable[tuple[int, str]]:
    return host_state.parse_rules(run(["ip", f"-{version}", "rule", "show"]).stdout, version)


def _sysctls(links: Iterable[Link]) -> Iterator[tuple[str, str]]:
    """Yield sysctls below /proc/sys/net with their values, those for all links before those of one."""
    names = ["all", *(link.name for link in links)]
    paths = [f"{ip}/conf/{name}/{key}" for name in names for ip, keys in _BY_LINK.items() for key in keys]
    paths += _OTHERS
    paths += [f"bridge/{name}" for name in sorted(list_directory("/proc/sys/net/bridge"))]
    for path in paths:
        value = read_text(f"/proc/sys/net/{path}").strip()
        if value:
            yield path, value


def _saved(families: Iterable[str]) -> Iterator[XtTable]:
    for family in families:
        program = _SAVERS.get(family)
        if program:
            saved = run([f"{program}-save"], timeout=nft.TIMEOUT)
            yield from host_state.split_saved(saved.stdout, family, f"{program}-restore")


def _legacy() -> Iterator[XtTable]:
    for family, (program, names) in _LEGACY.items():
        if read_text(f"/proc/net/{names}").strip():
            saved = run([f"{program}-save"], timeout=nft.TIMEOUT)
            yield from host_state.split_saved(saved.stdout, family, f"{program}-restore")


def _vlans(links: Iterable[Link]) -> Iterator[tuple[str, str]]:
    """Yield the words of ``bridge vlan add`` for the ports of bridges that filter VLANs, with the port."""
    if any(link.vlan_filtering for link in links):
        yield from host_state.parse_vlans(run(["bridge", "-j", "vlan", "show"]).stdout)
