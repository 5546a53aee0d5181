"""What libvirt says of its domains, and what an error says of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from unit.build import UUID, domain_xml
from virt_forward.errors import VirtForwardError
from virt_forward.libvirtd import api, metadata

INTERNAL, NO_DOMAIN = 1, 42
"""VIR_ERR_INTERNAL_ERROR, as of a connection that broke, and VIR_ERR_NO_DOMAIN (libvirt/virterror.h)."""


class FakeError(Exception):
    """Stands for libvirt.libvirtError."""

    def __init__(self, code: int) -> None:
        super().__init__("end of file while reading data")
        self._code = code

    def get_error_code(self) -> int:
        return self._code


class FakeDomain:
    """Stands for libvirt.virDomain; every answer but the UUID fails with an error of ``code``, if any."""

    def __init__(self, code: int | None = None) -> None:
        self._code = code

    def UUIDString(self) -> str:  # noqa: N802
        return UUID

    def isActive(self) -> int:  # noqa: N802
        if self._code is not None:
            raise FakeError(self._code)
        return 1

    def isPersistent(self) -> int:  # noqa: N802
        return 0

    def ID(self) -> int:  # noqa: N802
        return 7

    def state(self) -> list[int]:
        return [1, 1]

    def name(self) -> str:
        return "web"

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        return domain_xml().decode()


class FakeConnection:
    """Stands for libvirt.virConnect, with one domain that runs and one whose answers fail."""

    def __init__(self, code: int) -> None:
        self._code = code

    def listAllDomains(self) -> list[FakeDomain]:  # noqa: N802
        return [FakeDomain(), FakeDomain(self._code)]

    def lookupByUUIDString(self, uuid: str) -> FakeDomain:  # noqa: N802
        if uuid != UUID:
            raise FakeError(self._code)
        return FakeDomain()


@pytest.fixture(autouse=True)
def libvirt(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = SimpleNamespace(libvirtError=FakeError, VIR_ERR_NO_DOMAIN=NO_DOMAIN, VIR_DOMAIN_PAUSED=3)
    monkeypatch.setattr(api, "module", lambda: fake)


OTHER = UUID.replace(UUID[0], "f" if UUID[0] != "f" else "e", 1)


@pytest.mark.parametrize("only", [None, [UUID, OTHER]], ids=["all", "some"])
def test_undefined_domain_is_left_out(only: list[str] | None) -> None:
    found = api.domains(FakeConnection(NO_DOMAIN), only)
    assert [(state.name, state.id) for state in found] == [("web", 7)]


@pytest.mark.parametrize("only", [None, [UUID, OTHER]], ids=["all", "some"])
def test_domain_of_a_broken_connection_does_not_count_as_undefined(only: list[str] | None) -> None:
    with pytest.raises(VirtForwardError, match="libvirt does not list its domains: end of file"):
        api.domains(FakeConnection(INTERNAL), only)


def test_read_only_connection_is_opened_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = mock.Mock(libvirtError=FakeError)
    monkeypatch.setattr(api, "module", lambda: fake)
    with api.connection("test:///default", read_only=True) as opened:
        assert opened is fake.openReadOnly.return_value
    fake.open.assert_not_called()


def test_declarations_are_those_of_all_other_domains_or_an_error() -> None:
    assert len([*metadata.declarations(FakeConnection(NO_DOMAIN), OTHER)]) == 1
    with pytest.raises(VirtForwardError, match="libvirt does not list its domains"):
        list(metadata.declarations(FakeConnection(INTERNAL), OTHER))


def test_configuration_of_a_running_domain_is_its_inactive_xml() -> None:
    inactive, active, persistent = 2, 1, 4

    class Domain(FakeDomain):
        def XMLDesc(self, flags: int) -> str:  # noqa: N802
            return "next" if flags == inactive else "live"

    class Connection:
        def listAllDomains(self, flags: int) -> list[FakeDomain]:  # noqa: N802
            return [Domain()] if flags == active | persistent else []

    api.module().VIR_CONNECT_LIST_DOMAINS_ACTIVE = active
    api.module().VIR_CONNECT_LIST_DOMAINS_PERSISTENT = persistent
    api.module().VIR_DOMAIN_XML_INACTIVE = inactive
    assert metadata.configurations(Connection()) == {UUID: b"next"}
