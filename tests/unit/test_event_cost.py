"""What an event reads: it costs the same whatever the number of other guests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fake_host import fake_host
from support.xml import Network, host_ip, network_hook, port_forward, uuid_of
from virt_forward.state.store import Store

WEB = (host_ip("10.10.0.200"), port_forward("8080:80"))
DB = (host_ip("10.10.0.201"), port_forward("5432"))


@contextlib.contextmanager
def records_read() -> Iterator[set[str]]:
    """Give the names of the guests' records that are read."""
    read: set[str] = set()
    plain = Store.read

    def noted(store: Store, name: str) -> str | None:
        read.update({name} if name.startswith("guests/") else ())
        return plain(store, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "read", noted)
        yield read


def test_start_and_stop_do_not_read_the_records_of_other_guests(tmp_path: Path) -> None:
    with fake_host(tmp_path) as host:
        host.start("db", *DB)
        with records_read() as read:
            host.start("web", *WEB)
            host.stop("web", *WEB)
    assert read == {f"guests/{uuid_of('web')}.json"}


@pytest.mark.parametrize("operation", ["port-created", "port-deleted"])
def test_port_event_reads_the_record_of_its_owner_alone(operation: str, tmp_path: Path) -> None:
    with fake_host(tmp_path) as host:
        host.start("db", *DB)
        host.start("web", *WEB)
        with records_read() as read:
            assert host.network_event(operation, network_hook(Network("other"), port_of="web")) == 0
        assert read == {f"guests/{uuid_of('web')}.json"}
        with records_read() as read:
            assert host.network_event(operation, network_hook(Network("other"), port_of="stranger")) == 0
        assert not read
