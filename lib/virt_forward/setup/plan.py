"""From options and facts to files, commands and lines: what --dry-run prints is what the real run does."""

from collections.abc import Iterator

from virt_forward.errors import UsageError, VirtForwardError
from virt_forward.setup import choose, lan, routed, rules
from virt_forward.setup.facts import Link, SetupFacts
from virt_forward.setup.options import File, Options, Plan


def plan(options: Options, facts: SetupFacts) -> Plan:
    """Return what sets up the bridge. Raises VirtForwardError if the host does not allow it."""
    if options.lan is not None:
        return _lan(options, options.lan, facts)
    return _routed(options, facts)


def _routed(options: Options, facts: SetupFacts) -> Plan:
    name = choose.bridge(options, facts)
    uplinks = options.uplinks or facts.uplinks
    if not uplinks:
        raise VirtForwardError(
            "no interface has a default route, so it is not known how guests reach the outside",
            "name the uplinks, as in --uplink enp1s0 wlan0",
        )
    if name in uplinks:
        raise UsageError(f"--uplink {name}: is the bridge itself")
    address, prefix = choose.subnet(options, facts), choose.prefix(options, facts)
    bridge = routed.Bridge(name, choose.mac(options, facts), address, prefix, options.dns)
    properties = {"Name": name, "Type": "bridge", "Kind": "bridge", "MACAddress": bridge.mac}
    stem = choose.file_name(properties, facts)
    links = [facts.link(each) or Link(each) for each in uplinks]
    files = (
        File(f"{routed.DIRECTORY}/{stem}.netdev", routed.netdev(name, bridge.mac)),
        File(f"{routed.DIRECTORY}/{stem}.network", routed.network(bridge, facts)),
        *routed.forwarding_files(bridge, links, stem, facts),
    )
    notes = (
        *_networkd_notes(facts),
        *_wait_notes(facts),
        *_dns_notes(bridge, facts),
        *_ruleset_notes(facts),
        *rules.foreign(facts, bridge),
    )
    return Plan(name, files, _commands(files, facts), rules.lines(bridge, uplinks, facts), notes)


def _lan(options: Options, nic: str, facts: SetupFacts) -> Plan:
    unused = {
        "--subnet": options.subnet,
        "--ipv6": options.ipv6 is not None,
        "--uplink": options.uplinks,
        "--dns": options.dns,
    }
    for option, given in unused.items():
        if given:
            raise UsageError(
                f"{option} and --lan do not go together: guests get their addresses from the LAN"
            )
    link = lan.nic(nic, facts, options.yes)
    name = choose.bridge(options, facts)
    files = (*lan.files(name, link, options, facts),)
    notes = (*_networkd_notes(facts), *lan.notes(name, link, facts))
    return Plan(name, files, _commands(files, facts), "", notes)


def _commands(files: tuple[File, ...], facts: SetupFacts) -> tuple[tuple[str, ...], ...]:
    settings = [("sysctl", "-p", file.path) for file in files if file.path.startswith("/etc/sysctl.d/")]
    networkd = (
        ("networkctl", "reload") if facts.networkd else ("systemctl", "enable", "--now", "systemd-networkd")
    )
    return (*settings, networkd)


def _networkd_notes(facts: SetupFacts) -> Iterator[str]:
    if not facts.networkd:
        yield (
            "systemctl enable --now systemd-networkd starts networkd, now and at boot. It configures only "
            "what a .network file matches: interfaces of other programs stay theirs"
        )


def _wait_notes(facts: SetupFacts) -> Iterator[str]:
    if not facts.networkd and not any(link.manager == "systemd-networkd" for link in facts.links):
        yield (
            "no other interface is networkd's: run systemctl disable systemd-networkd-wait-online, "
            "or the boot waits two minutes for one"
        )


def _dns_notes(bridge: routed.Bridge, facts: SetupFacts) -> Iterator[str]:
    if bridge.dns or facts.dns_follows:
        return
    if any(server.version == 4 for server in facts.nameservers):
        yield "guests get this host's DNS servers of today; name others with --dns if it changes networks"
    else:
        yield f"guests cannot ask this host's DNS servers: they get {routed.PUBLIC_DNS}; see --dns"


def _ruleset_notes(facts: SetupFacts) -> Iterator[str]:
    if facts.chains is None:
        yield (
            "the ruleset cannot be read (is nftables installed?): if a chain of yours drops forwarded "
            "packets, run init --dry-run again for its lines"
        )
    if not facts.loaded_at_boot:
        yield (
            f"nftables.service is not enabled: systemctl enable --now nftables makes {facts.nftables_conf} "
            "take effect, now and at boot"
        )
