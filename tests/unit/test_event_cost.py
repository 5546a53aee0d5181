"""What an event reads: it costs the same whatever the number of other guests."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.fake_host import fake_host
from support.xml import host_ip, port_forward, uuid_of
from virt_forward.state.store import Store

WEB = (host_ip("10.10.0.200"), port_forward("8080:80"))
DB = (host_ip("10.10.0.201"), port_forward("5432"))


def test_start_and_stop_do_not_read_the_records_of_other_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    plain = Store.read

    def noted(store: Store, name: str) -> str | None:
        read.add(name)
        return plain(store, name)

    with fake_host(tmp_path) as host:
        host.start("db", *DB)
        monkeypatch.setattr(Store, "read", noted)
        host.start("web", *WEB)
        host.stop("web", *WEB)
    assert {name for name in read if name.startswith("guests/")} == {f"guests/{uuid_of('web')}.json"}
