"""Problems of bridges: networkd stopped, names that two want, ports taken for interfaces, br_netfilter."""

from collections.abc import Iterator

from virt_forward import portspec, text
from virt_forward.addresses import explain
from virt_forward.check.facts import Facts
from virt_forward.check.packet_findings import edit, few
from virt_forward.check.problem import Problem
from virt_forward.config import DEFAULT_PATH

_CALLS = "net.bridge.bridge-nf-call-{}=0"


def bridge_name_clash(facts: Facts) -> Iterator[Problem]:
    """Find libvirt networks that want the name of somebody else's bridge."""
    for clash in facts.clashes:
        network = text.word(clash.network)
        message = (
            f"libvirt's network {network} also wants the bridge {text.word(clash.bridge)} of {clash.owner}"
        )
        fix = f"give it another name in <bridge name=…/> with virsh net-edit {network}, "
        fix += f"or delete it: virsh net-destroy {network}; virsh net-undefine {network}"
        yield Problem("bridge-name-clash", "warning", None, message, fix)


def br_netfilter(facts: Facts) -> Iterator[Problem]:
    """Find guests that cannot reach their own forwards, as frames on bridges pass the IP hooks."""
    names = {guest.uuid: guest.name for guest in facts.guests}
    for uuid, port in facts.without_hairpin:
        message = (
            "br_netfilter is on (net.bridge.bridge-nf-call-iptables): the guest cannot reach its own forwards"
        )
        message += f", as its port {text.word(port)} is not in hairpin mode"
        fix = (
            f'set hairpin = "ports" in section [forward] of {DEFAULT_PATH} and run virt-forward sync; or, if '
        )
        fix += f"nothing else needs it, sysctl -w {_CALLS.format('iptables')} {_CALLS.format('ip6tables')}"
        yield Problem("br-netfilter", "warning", names[uuid], message, fix)


def networkd_stopped(facts: Facts) -> Iterator[Problem]:
    """Find bridges of running guests that networkd makes, where it is stopped or not enabled."""
    guests = [guest for guest in facts.guests if guest.phase == "running"]
    named = {nic.source for guest in guests for nic in guest.nics}
    named |= {endpoint.bridge for guest in guests for endpoint in guest.endpoints}
    bridges = few([text.word(name) for name in sorted(named & facts.networkd_bridges)])
    running, enabled = facts.networkd
    if not bridges or (running and enabled):
        return
    message = (
        f"systemd-networkd is not enabled: the next boot does not make {bridges}"
        if running
        else f"systemd-networkd, which makes {bridges}, is not running: it gives guests no addresses"
    )
    fix = "systemctl enable --now systemd-networkd"
    yield Problem("networkd-stopped", "warning" if running else "error", None, message, fix)


def bridge_absent(facts: Facts) -> Iterator[Problem]:
    """Find bridges of guests that do not exist: deleted, or renamed."""
    for guest in facts.guests:
        found = [endpoint.bridge for endpoint in guest.endpoints]
        for forward in guest.forwards:
            if not guest.endpoints_for(forward):
                found += [item.bridge for item in explain.serving(guest, forward, facts.networks)]
        for bridge in dict.fromkeys(found):
            if guest.phase == "running" and facts.lacks(bridge):
                message = f"its bridge {text.word(bridge)} does not exist now"
                fix = "restore the bridge (networkctl reload, where networkd makes it), or name the new one "
                fix += f"in its interface ({edit(guest.name, guest.uuid)}), and restart the guest"
                yield Problem("device-absent", "error", guest.name, message, fix)


def device_is_port(facts: Facts) -> Iterator[Problem]:
    """Find bridge ports that are named as interfaces to listen on: packets arrive on the bridge."""
    for dev in facts.config.uplinks:
        if dev in facts.ports:
            bridge = text.word(facts.ports[dev])
            message = (
                f"[forward] uplinks names {dev}, but that is a port of bridge {bridge}, where packets arrive"
            )
            yield Problem("device-is-port", "warning", None, message, f"name {bridge} in {DEFAULT_PATH}")
    for guest in facts.guests:
        named: dict[str, list[str]] = {}
        for forward in guest.forwards if guest.phase == "running" else ():
            if forward.dev and forward.dev in facts.ports:
                named.setdefault(forward.dev, []).append(portspec.render(forward))
        for dev, shown in named.items():
            bridge = text.word(facts.ports[dev])
            message = (
                f"{few(shown)} cannot be reached: {dev} is a port of bridge {bridge}, where packets arrive"
            )
            fix = f'use dev="{bridge}" ({edit(guest.name, guest.uuid)})'
            yield Problem("device-is-port", "warning", guest.name, message, fix)
