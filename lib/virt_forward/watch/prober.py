"""Looking for guests whose address nothing tells: the service hears DHCP answers, and asks."""

import math
import select
import time
from collections.abc import Iterable
from ipaddress import ip_network
from typing import NamedTuple

from virt_forward.addresses import probe
from virt_forward.addresses.probe import Question
from virt_forward.host import log
from virt_forward.host.probe_socket import Ear, ask
from virt_forward.model import Address, Sighting

ASK_AFTER = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""When a guest is asked for its address, in seconds since it began to be sought; then it is left in peace."""

LEASED_AFTER = (0.1, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0)
"""When a NIC is asked for an address that it was just leased, in seconds since then."""

AGAIN_SECONDS = 60.0
"""How often, at most, a NIC is asked after that, where there is news of it."""

ANSWER_SECONDS = 5.0
"""How long after a request an answer counts as one."""

MOST_SEEN = 16

Key = tuple[str, str, int]
"""A NIC and IP version: bridge, MAC, 4 or 6."""


class Search:
    """When one NIC is asked: by ASK_AFTER, once more so with the first news, later once for what is new."""

    def __init__(self, now: float) -> None:
        self.last = -math.inf
        self._began = now
        self._asked = 0
        self._restarted = False
        self._seen: set[Address] = set()

    def due(self) -> float:
        """Return when to ask next; infinity where nothing more is to be asked."""
        return self._began + ASK_AFTER[self._asked] if self._asked < len(ASK_AFTER) else math.inf

    def next_at(self, now: float) -> float:
        """Return when to ask next, or when no answer is waited for any more; infinity after that."""
        ends = self.last + ANSWER_SECONDS
        return ends if self.due() == math.inf and ends > now else self.due()

    def over(self, now: float) -> bool:
        """Tell whether nothing more is to be asked, and no answer is to come."""
        return self.due() == math.inf and self.last + ANSWER_SECONDS <= now

    def ask(self, now: float) -> None:
        """Note that the NIC is asked now."""
        self._asked += 1
        self.last = now

    def seen(self, now: float, ip: Address) -> None:
        """Ask again where a link-local address has not been seen before: the NIC's network has come up."""
        if ip not in self._seen and len(self._seen) < MOST_SEEN:
            self._seen.add(ip)
            self.again(now)

    def again(self, now: float) -> None:
        """Ask again, as there is news of the NIC."""
        if not self._restarted:
            self._began, self._asked, self._restarted = now, 0, True
        elif self._asked == len(ASK_AFTER):
            self._asked -= 1
            self._began = max(now, self.last + AGAIN_SECONDS) - ASK_AFTER[-1]


class Leased(NamedTuple):
    """An address that a NIC was just leased, as the question whether it has it, and when to ask."""

    question: Question
    times: tuple[float, ...]


class Seeker:
    """An ear on each bridge where an address is sought, and on no other: it costs each packet there.

    For IPv4 it hears DHCP for as long as the address is sought, for IPv6 answers alone.
    """

    def __init__(self, poller: select.poll) -> None:
        self._poller = poller
        self._questions: dict[Key, list[Question]] = {}
        self._searches: dict[Key, Search] = {}
        self._ears: dict[tuple[str, int], Ear] = {}
        self._leased: dict[Key, Leased] = {}
        self._told: set[str] = set()
        self._next = math.inf
        self.heard: dict[str, tuple[Sighting, ...]] = {}

    def seek(self, questions: Iterable[Question]) -> None:
        """Look for the answers to these questions, and no longer for others."""
        now = time.monotonic()
        before, self._questions = self._questions, {}
        for item in questions:
            self._questions.setdefault((item.bridge, item.mac, item.own.version), []).append(item)
        for key in self._questions:
            if key not in self._searches:
                self._searches[key] = Search(now)
            elif key not in before:
                self._searches[key].again(now)
        # Whoever comes and goes is not asked more often for it.
        kept = {key for key, search in self._searches.items() if search.last + AGAIN_SECONDS > now}
        self._searches = {k: s for k, s in self._searches.items() if k in self._questions or k in kept}
        self._follow(now)

    def next_at(self) -> float:
        """Return when ``work`` has something to do without any answer, on the monotonic clock."""
        return self._next

    def seeks(self, mac: str) -> bool:
        """Tell whether a NIC's address is sought."""
        return any(mac == sought for _, sought, _ in self._questions)

    def news(self, mac: str, ip: Address) -> None:
        """Take note of a link-local address at a NIC."""
        now = time.monotonic()
        for key, search in self._searches.items():
            if key[1] == mac:
                search.seen(now, ip)
        self._follow(now)

    def work(self) -> bool:
        """Ask where it is time to, read what was answered, and tell whether that is any news."""
        now = time.monotonic()
        found = [self._read(ear, now) for ear in self._ears.values()]
        if any(found):
            self._follow(now)
        if now >= self._next:
            self._ask(now)
            self._follow(now)
        return any(found)

    def close(self) -> None:
        """Close every ear."""
        self.seek(())

    def _ask(self, now: float) -> None:
        due = [key for key in self._questions if self._searches[key].due() <= now]
        for key in due:
            self._searches[key].ask(now)
        ask((item for key in due for item in self._questions[key]), self._ears)
        self._leased = {key: leased for key, leased in self._leased.items() if key in self._questions}
        for key, (question, times) in tuple(self._leased.items()):
            if times[0] > now:
                continue
            self._searches[key].last = now
            ask([question], self._ears)
            later = tuple(at for at in times if at > now)
            if later:
                self._leased[key] = Leased(question, later)
            else:
                del self._leased[key]

    def _read(self, ear: Ear, now: float) -> bool:
        found = [seen for seen in ear.read(self._asked(ear)) if self._counts(seen, ear, now)]
        if found:
            self.heard[ear.bridge] = probe.joined(self.heard.get(ear.bridge, ()), found)
        for seen in found:
            self._ask_for_lease((ear.bridge, seen.mac, ear.version), seen, now)
        return bool(found)

    def _ask_for_lease(self, key: Key, seen: Sighting, now: float) -> None:
        """Ask the NIC for an address that it was leased: anybody may ask a DHCP server in its name."""
        if seen.origin == "leased" and key not in self._leased:
            question = next(item for item in self._questions[key] if seen.ip in item.subnet)
            times = tuple(now + seconds for seconds in LEASED_AFTER)
            self._leased[key] = Leased(question._replace(subnet=ip_network(seen.ip)), times)

    def forget(self) -> None:
        """Forget what was heard, but for leases of NICs that have not answered yet."""
        kept = {
            bridge: tuple(
                seen
                for seen in heard
                if seen.origin == "leased" and (bridge, seen.mac, seen.ip.version) in self._questions
            )
            for bridge, heard in self.heard.items()
        }
        self.heard = {bridge: heard for bridge, heard in kept.items() if heard}

    def _asked(self, ear: Ear) -> Iterable[Question]:
        return (
            item
            for (bridge, _, version), items in self._questions.items()
            if (bridge, version) == (ear.bridge, ear.version)
            for item in items
        )

    def _counts(self, seen: Sighting, ear: Ear, now: float) -> bool:
        """Tell whether a sighting is a lease, or the answer to a request of a moment ago."""
        last = self._searches[ear.bridge, seen.mac, ear.version].last
        return seen.origin == "leased" or now <= last + ANSWER_SECONDS

    def _follow(self, now: float) -> None:
        """Listen where it is of use, and no longer elsewhere."""
        wanted = {
            (bridge, version)
            for bridge, mac, version in self._questions
            if version == 4 or not self._searches[bridge, mac, version].over(now)
        }
        for place in set(self._ears) - wanted:
            self._close(place)
        for place in wanted - set(self._ears):
            self._open(*place)
        times = [self._searches[key].next_at(now) for key in self._questions]
        times += [at for leased in self._leased.values() for at in leased.times[:1]]
        self._next = min(times, default=math.inf)

    def _open(self, bridge: str, version: int) -> None:
        try:
            ear = Ear(bridge, version)
        except OSError as error:
            if bridge not in self._told:
                self._told.add(bridge)
                log.warning(
                    f"watch: guests on {bridge} cannot be asked for their addresses: {error.strerror}"
                )
            return
        self._told.discard(bridge)
        self._ears[bridge, version] = ear
        self._poller.register(ear.fileno(), select.POLLIN)

    def _close(self, place: tuple[str, int]) -> None:
        ear = self._ears.pop(place)
        self._poller.unregister(ear.fileno())
        ear.close()
