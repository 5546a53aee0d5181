"""A configuration that is edited while guests run: table, guard and sysctl follow it together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.fake_host import FakeHost, fake_host
from support.netns import BRIDGE, UPLINK
from support.xml import host_ip, port_forward, uuid_of
from unit.build import forward
from unit.expected_table import guest, holds, include_loads_the_same
from virt_forward.config import Config, ReservedPort
from virt_forward.errors import NftError, StateError
from virt_forward.host import switches
from virt_forward.reconcile import refresh
from virt_forward.ruleset import static, table
from virt_forward.state.snapshot import Snapshot
from virt_forward.state.store import Store

WEB, DB = "10.10.0.200", "10.10.0.201"
WEB_XML = (host_ip(WEB), port_forward("8080:80"))
DB_XML = (host_ip(DB), port_forward("5432"))
web = guest("web", WEB, forward(8080, to=80))
db = guest("db", DB, forward(5432))

LOCALHOST = "[forward]\nlocalhost = true\n"


class Bridge:
    """The sysctl route_localnet of the bridge, which is on only while the table has the guard."""

    def __init__(self, host: FakeHost) -> None:
        self.host, self.on = host, False

    @property
    def guarded(self) -> bool:
        return "chain guard" in (self.host.nft.plain_listing() or "")

    def read(self, path: str) -> str:
        return "1" if self.on and f"/{BRIDGE}/" in path else "0"

    def turn(self, _path: str, value: str, _otherwise: str) -> bool:
        self.on = value == "1"
        assert self.guarded, "switched on before its guard is there, or off after it is gone"
        return True


@pytest.fixture
def host(tmp_path: Path) -> Iterator[FakeHost]:
    with fake_host(tmp_path) as made:
        yield made


@pytest.fixture
def bridge(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> Bridge:
    made = Bridge(host)
    monkeypatch.setattr(switches, "read", made.read)
    monkeypatch.setattr(switches, "turn", made.turn)
    return made


Happening = Callable[[FakeHost], object]
EVENTS: dict[str, Happening] = {
    "reconnect": lambda host: host.event("web", "reconnect", *WEB_XML),
    "prepare of another guest": lambda host: host.event("db", "prepare", *DB_XML),
    "the service's check": lambda _: refresh.verify(Store()),
}
happening = pytest.mark.parametrize("happen", EVENTS.values(), ids=EVENTS)


@happening
def test_localhost_comes_and_goes_with_its_guard(host: FakeHost, bridge: Bridge, happen: Happening) -> None:
    host.start("web", *WEB_XML)
    host.config.write_text(LOCALHOST)
    happen(host)
    assert (bridge.on, bridge.guarded) == (True, True)
    assert holds(host, web, config=Config(localhost=True))
    host.config.write_text("")
    happen(host)
    assert (bridge.on, bridge.guarded) == (False, False)
    assert holds(host, web)
    assert include_loads_the_same(host)


@happening
@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("[forward]\nhairpin = false\n", Config(hairpin=False)),
        (f'[forward]\nuplinks = ["{UPLINK}"]\n', Config(uplinks=(UPLINK,))),
    ],
    ids=["hairpin", "uplinks"],
)
def test_table_follows_the_settings_at_any_event(
    host: FakeHost, happen: Happening, text: str, config: Config
) -> None:
    host.start("web", *WEB_XML)
    for now, expected in ((text, config), ("", Config())):
        host.config.write_text(now)
        happen(host)
        assert holds(host, web, config=expected)
        assert include_loads_the_same(host)


def test_state_that_does_not_tell_its_settings_is_rebuilt_once(host: FakeHost) -> None:
    host.start("web", *WEB_XML)
    with Store().open() as state, state.transaction() as connection:
        connection.execute("DELETE FROM state WHERE name = 'settings'")
    rebuilt = []
    host.nft.before_apply = lambda text: rebuilt.append("flush table" in text)
    for _ in range(2):
        host.event("web", "reconnect", *WEB_XML)
    assert rebuilt == [True, False]


def refuse_web(text: str) -> None:
    if uuid_of("web") in text:
        raise NftError("nft refused: Error: Cannot parse that")


def test_guest_that_is_kept_out_leaves_no_switch_without_a_table(host: FakeHost, bridge: Bridge) -> None:
    host.config.write_text(LOCALHOST)
    host.nft.before_apply, before = refuse_web, host.nft.before_apply
    host.start("web", *WEB_XML)
    assert (bridge.on, host.nft.table) == (False, None)
    host.nft.before_apply = before
    host.event("web", "reconnect", *WEB_XML)
    assert (bridge.on, bridge.guarded) == (True, True)
    host.nft.before_apply = refuse_web
    host.event("web", "reconnect", *WEB_XML, port_forward("8081"))
    assert (bridge.on, host.nft.table) == (False, None)


def test_stop_that_cannot_be_written_leaves_no_switch_without_a_table(
    host: FakeHost, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.config.write_text(LOCALHOST)
    host.start("web", *WEB_XML)
    assert bridge.on

    def full(*_: object) -> None:
        raise StateError("No space left on device")

    for method in ("commit", "set_effects"):
        monkeypatch.setattr(Snapshot, method, full)
    host.event("web", "stopped", *WEB_XML)
    assert (bridge.on, host.nft.table) == (False, None)


OTHERS = Config(
    uplinks=(UPLINK,),
    localhost=True,
    hairpin=False,
    reserved=(ReservedPort("tcp", 1),),
    on_error="warn",
    learn="any",
    admit=False,
    uri="qemu:///session",
)


@pytest.mark.parametrize("field", Config._fields)
def test_settings_differ_where_the_table_does(field: str) -> None:
    value = getattr(OTHERS, field)
    assert value != getattr(Config(), field)
    one, other = Config(), Config()._replace(**{field: value})
    tables = [table.text(table.whole([web], config, 1)) for config in (one, other)]
    assert (static.settings(one) == static.settings(other)) == (tables[0] == tables[1])


def test_hairpin_mode_of_ports_is_no_setting_of_the_table() -> None:
    assert static.settings(Config(hairpin="ports")) == static.settings(Config())
