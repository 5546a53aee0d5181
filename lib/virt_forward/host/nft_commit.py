"""Learning that the kernel has committed a transaction of nft before nft has ended.

When nft closes its socket, the kernel has it wait until what was deleted is freed, which takes some 10 ms
(nft_rcv_nl_event in net/netfilter/nf_tables_api.c). The rules are in force before that, and the kernel
tells all who listen, with the port of the socket that the transaction came by: nft's process number.
The socket that listens would have to wait as well when it is closed. So nft inherits it, and closes it.
"""

# The module socket takes 5 ms to import, and builds on this one.
from _socket import AF_NETLINK, MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_RAW, socket

from virt_forward.host.netlink import NETLINK_ADD_MEMBERSHIP, NETLINK_NETFILTER, SOL_NETLINK, messages

NFNLGRP_NFTABLES = 7
NEWGEN = 10 << 8 | 15
"""NFNL_SUBSYS_NFTABLES and NFT_MSG_NEWGEN: linux/netfilter/nfnetlink.h, nf_tables.h."""

_CHUNK = 1 << 16


class CommitWatch:
    """Watches for the commit of a transaction, from before nft is started. Raises OSError if it cannot."""

    def __init__(self) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there is something to know."""
        return self._socket.fileno()

    def is_done(self, pid: int) -> bool:
        """Tell whether a transaction of process ``pid`` was committed. Raises OSError if events are lost."""
        found = messages(self._socket.recv(_CHUNK, MSG_DONTWAIT))
        return any(message.kind == NEWGEN and message.port == pid for message in found)

    def close(self) -> None:
        """Close the socket, which does not wait as long as nft has it open, too."""
        self._socket.close()
