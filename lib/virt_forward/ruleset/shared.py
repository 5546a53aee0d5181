"""Blocks that several guests have a part in, made from the index of claims alone.

Which chain a port leads to is in slots.py. A lookup is made as long as one guest needs it. A bridge has
a chain with the subnets that the host has there, as long as one guest with forwards is on it.
"""

from collections.abc import Iterable, Iterator

from virt_forward import names
from virt_forward.claims.rows import GatewayRow, IsolatedRow, LookupRow, Row, SubnetRow
from virt_forward.config import Config
from virt_forward.model import Subnet
from virt_forward.ruleset import maps, slots, static
from virt_forward.ruleset.block import Block, Chain


def blocks(index: Iterable[Row], touching: Iterable[Row], config: Config) -> dict[str, Block]:
    """Return the shared blocks that the rows ``touching`` have a part in, as ``index`` makes them.

    What ``index`` needs of the claims of other guests, slots.blocks() says; of subnets and gateways,
    those on the same bridge and of the same address, one row of each, as of isolated hardware addresses;
    of lookups, one row of each.
    """
    index, touching = tuple(index), tuple(touching)
    found = list(slots.blocks(index, touching))
    found += _lan_blocks(index, touching)
    found += _gateway_blocks(index, touching)
    found += _isolated_blocks(index, touching)
    found += _lookup_block(index, config)
    return {block.key: block for block in found}


def _lookup_block(index: tuple[Row, ...], config: Config) -> Iterator[Block]:
    used = {row.lookup for row in index if isinstance(row, LookupRow)}
    if used:
        rules = static.lookups(config, used)
        chains = tuple(Chain(name, "", found) for name, found in rules.items() if found)
        yield Block("lookups", chains)


def _lan_blocks(index: tuple[Row, ...], touching: tuple[Row, ...]) -> Iterator[Block]:
    touched = {row.bridge for row in touching if isinstance(row, SubnetRow)}
    lans: dict[str, set[Subnet]] = {}
    for row in index if touched else ():
        if isinstance(row, SubnetRow) and row.bridge in touched:
            lans.setdefault(row.bridge, set()).add(row.subnet)
    for bridge, subnets in sorted(lans.items()):
        name = f"lan-{names.bridge_suffix(bridge)}"
        rules = (
            f"{names.family(subnet.version)} saddr {subnet} masquerade" for subnet in sorted(subnets, key=str)
        )
        chain = Chain(name, names.quoted(f"from guests on {bridge} to guests on it"), tuple(rules))
        same_bridge = maps.SAME_BRIDGE.element(bridge, bridge)
        lan = maps.LAN.element(bridge, data=f"goto {name}")
        yield Block(f"lan {bridge}", (chain,), (same_bridge, lan))


def _gateway_blocks(index: tuple[Row, ...], touching: tuple[Row, ...]) -> Iterator[Block]:
    touched = {row.ip for row in touching if isinstance(row, GatewayRow)}
    present = {row.ip for row in index if isinstance(row, GatewayRow)} if touched else set()
    for ip in sorted(touched & present, key=str):
        element = maps.GATEWAY[ip.version].element(ip)
        yield Block(f"gateway {ip}", elements=(element,))


def _isolated_blocks(index: tuple[Row, ...], touching: tuple[Row, ...]) -> Iterator[Block]:
    touched = {row.mac for row in touching if isinstance(row, IsolatedRow)}
    present = {row.mac for row in index if isinstance(row, IsolatedRow)} if touched else set()
    for mac in sorted(touched & present):
        yield Block(f"isolated {mac}", elements=(maps.ISOLATED_MACS.element(mac),))
