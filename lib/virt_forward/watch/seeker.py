"""Looking for guests whose address nothing tells: the service hears DHCP answers, and asks."""

import select
import time
from collections.abc import Iterable

from virt_forward import log
from virt_forward.addresses import asking
from virt_forward.addresses.asking import Question
from virt_forward.ask import Ear, ask
from virt_forward.model import Sighting

ASK_AFTER = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""When a guest is asked for its address, in seconds since it began to be sought; then it is left in peace."""


class Seeker:
    """An ear on each bridge where an IPv4 address is sought, and on no other: it costs each packet there."""

    def __init__(self, poller: select.poll) -> None:
        self._poller = poller
        self._questions: frozenset[Question] = frozenset()
        self._ears: dict[str, Ear] = {}
        self._since = 0.0
        self._asked = 0
        self.heard: dict[str, tuple[Sighting, ...]] = {}

    def seek(self, questions: Iterable[Question]) -> None:
        """Look for the answers to these questions, and no longer for others."""
        wanted = frozenset(questions)
        if wanted - self._questions:
            self.again()
        self._questions = wanted
        bridges = asking.listened(wanted)
        for bridge in set(self._ears) - bridges:
            self._close(bridge)
        for bridge in bridges - set(self._ears):
            self._open(bridge)

    def seeks(self, mac: str) -> bool:
        """Tell whether a NIC's address is sought."""
        return any(question.mac == mac for question in self._questions)

    def again(self) -> None:
        """Begin to ask anew, as something has happened."""
        self._since, self._asked = time.monotonic(), 0

    def work(self) -> bool:
        """Ask where it is time to, read what was answered, and tell whether that is any news."""
        if self._asked < len(ASK_AFTER) and time.monotonic() >= self._since + ASK_AFTER[self._asked]:
            self._asked += 1
            for question in self._questions:
                ask(question, self._ears)
        for bridge, ear in self._ears.items():
            found = [lease for lease in ear.read() if self.seeks(lease.mac)]
            if found:
                self.heard[bridge] = (*self.heard.get(bridge, ()), *found)
        return bool(self.heard)

    def close(self) -> None:
        """Close every ear."""
        self.seek(())

    def _open(self, bridge: str) -> None:
        try:
            ear = Ear(bridge)
        except OSError as error:
            log.warning(f"watch: guests on {bridge} cannot be asked for their addresses: {error.strerror}")
            return
        self._ears[bridge] = ear
        self._poller.register(ear.fileno(), select.POLLIN)

    def _close(self, bridge: str) -> None:
        ear = self._ears.pop(bridge)
        self._poller.unregister(ear.fileno())
        ear.close()
