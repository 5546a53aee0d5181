"""Names and quoted text for nft. Nothing reaches nft that has not passed through here or is a typed value."""

import re

from virt_forward import text

TABLE = "inet virt-forward"
TABLE_COMMENT = "virt-forward: port forwards of libvirt guests; changed by its hooks, not by hand"
LABEL = 100
"""The conntrack label bit of our connections."""

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,39}", re.ASCII)
_MAX_COMMENT = 128
"""Bytes of a comment, NFTNL_UDATA_COMMENT_MAXLEN."""


def suffix(name: str, uuid: str) -> str:
    """Return what a guest's chain names end in: unique, and readable where the name allows.

    A name that stands as it is needs only part of the UUID, as libvirt keeps names unique;
    one that had to be altered gets the whole.
    """
    if _SAFE.fullmatch(name):
        return f"{name}-{uuid[:8]}"
    altered = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:40]
    return f"{altered}-{uuid.replace('-', '')}"


def quoted(value: str) -> str:
    """Return ``value`` as an nft string, cut to what nft takes; nft knows no escapes inside."""
    clean = "".join("?" if c in '"\\' else c for c in text.plain(value[:_MAX_COMMENT], _MAX_COMMENT))
    data = clean.encode("utf-8", "replace")[: _MAX_COMMENT - 1]
    return '"' + data.decode("utf-8", "ignore") + '"'


def guest_comment(name: str, uuid: str) -> str:
    """Return the comment of a guest's chains: the UUID whole, and as much of the name as fits."""
    return quoted(f"{uuid} {name}")


def family(version: int) -> str:
    """Return nft's word for the family of an IP version."""
    return "ip" if version == 4 else "ip6"


def interface(dev: str) -> str:
    """Return an interface name as an nft string."""
    return f'"{dev}"'


def bridge_suffix(dev: str) -> str:
    """Return what the name of a bridge's chain ends in: another one for each name of an interface."""
    return re.sub(r"[^A-Za-z0-9-]", lambda found: f"_{ord(found[0]):02x}", dev)
