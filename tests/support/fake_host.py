"""A host for whole hook events without root: addresses, programs and the journal are fakes, files are real.

The layout is that of support.netns: uplink enp1s0 and bridge virbr0, both with an address of each family.
"""

from __future__ import annotations

import _sqlite3
import contextlib
import functools
import importlib
import os
import pkgutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

import virt_forward.effects
import virt_forward.host
from support import ctnetlink, xml
from support.fake_nft import FakeNft
from support.netns import BRIDGE, GATEWAY4, GATEWAY6, HOST4, HOST6, UPLINK
from virt_forward.addresses import networkd
from virt_forward.claims.sockets import Interfaces
from virt_forward.hooks import dispatch, prefilter
from virt_forward.host import conntrack, hostports, interfaces, log, netlink, nft, process

# What a hook imports late must not keep a replaced function after its test.
for _package in (virt_forward.host, virt_forward.effects):
    for _found in pkgutil.walk_packages(_package.__path__, f"{_package.__name__}."):
        importlib.import_module(_found.name)

SUB = {"stopped": "end", "release": "end"}
PHASES: dict[str, xml.Phase] = {"started": "started", "reconnect": "started", "stopped": "stopped"}


class KilledError(BaseException):
    """The hook dies here, as by SIGKILL: nothing of ours handles it."""


class FakeHost:
    """``connections`` are as support.ctnetlink makes them, ``messages`` what went to the journal."""

    def __init__(self, directory: Path) -> None:
        self.run_dir, self.config = directory / "run", directory / "config.toml"
        self.nft = FakeNft()
        self.addresses = {
            UPLINK: [f"{HOST4}/24", f"{HOST6}/64"],
            BRIDGE: [f"{GATEWAY4}/24", f"{GATEWAY6}/64"],
        }
        self.connections: list[bytes] = []
        self.dumps = 0
        self.messages: list[str] = []
        self.programs: list[tuple[str, ...]] = []
        self.listeners: list[Any] = []
        self._steps_left: int | None = None

    def event(self, name: str, operation: str, *children: str, attributes: str = "") -> int:
        """Run the qemu hook for a guest whose ``<forwards>`` has ``children``; return the exit status."""
        metadata = xml.forwards(*children, attributes=attributes) if children else ""
        text = xml.domain(name, metadata, phase=PHASES.get(operation, "prepare"))
        arguments = [name, operation, SUB.get(operation, "begin"), "-"]
        if not prefilter.concerns_us(arguments, text.encode()):
            return 0
        return dispatch.main("qemu", arguments, text.encode())

    def network_event(self, operation: str, text: str) -> int:
        """Run the network hook; return the exit status."""
        arguments = ["default", operation, "begin", "-"]
        if not prefilter.network_concerns_us(arguments, text.encode()):
            return 0
        return dispatch.main("network", arguments, text.encode())

    def start(self, name: str, *children: str, attributes: str = "") -> None:
        for operation in ("prepare", "start", "started"):
            assert self.event(name, operation, *children, attributes=attributes) == 0, self.messages

    def stop(self, name: str, *children: str) -> None:
        for operation in ("stopped", "release"):
            assert self.event(name, operation, *children) == 0, self.messages

    @contextlib.contextmanager
    def killed_before_step(self, number: int) -> Iterator[list[bool]]:
        """Kill the hook before its step ``number``: a file put in place or removed, a transaction's beginning
        and its commit, nft, the deletion of connections.

        Gives a list that is no longer empty once that has happened.
        """
        self._steps_left = number
        done: list[bool] = []
        try:
            yield done
        except KilledError:
            done.append(True)
        finally:
            self._steps_left = None

    def step(self) -> None:
        if self._steps_left is not None:
            if self._steps_left == 0:
                raise KilledError
            self._steps_left -= 1

    def run(self, argv: Sequence[str], stdin: str = "", timeout: float = 10.0) -> process.Result:  # noqa: ARG002
        """Stand in for virt_forward.host.process.run."""
        self.programs.append(tuple(argv))
        match argv:
            case ["ip", "-j", *_]:
                return process.Result(0, "[]", "")
        raise AssertionError(f"nobody expected {argv} to be run")

    def read_interfaces(self) -> Interfaces:
        """Stand in for virt_forward.host.interfaces.read_interfaces."""
        return {dev: tuple(map(ip_interface, addresses)) for dev, addresses in self.addresses.items()}

    def dump(self, protocol: int, kind: int, request: bytes) -> list[bytes]:
        """Stand in for virt_forward.host.netlink.dump: of connections, all or those that are translated."""
        assert (protocol, kind) == (netlink.NETLINK_NETFILTER, conntrack.CT_GET)
        self.dumps += 1
        wanted = ctnetlink.is_translated if len(request) > ctnetlink.NFGENMSG_SIZE else bool
        return [connection for connection in self.connections if wanted(connection)]

    def send(self, protocol: int, kind: int, requests: Sequence[bytes]) -> set[int]:
        """Stand in for virt_forward.host.netlink.send: delete connections."""
        assert (protocol, kind) == (netlink.NETLINK_NETFILTER, conntrack.CT_DELETE)
        self.step()
        self.connections = [connection for connection in self.connections if connection not in requests]
        return set()


@contextlib.contextmanager
def fake_host(directory: Path) -> Iterator[FakeHost]:
    """Put a fake host, its state under ``directory``, in the place of this one."""
    host = FakeHost(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIRT_FORWARD_RUN_DIR", str(host.run_dir))
        patch.setenv("VIRT_FORWARD_CONFIG", str(host.config))
        for name in ("apply", "delete_table", "parts", "revision", "dispatches", "listing", "plain_listing"):
            patch.setattr(nft, name, getattr(host.nft, name))
        patch.setattr(nft, "scratch_listing", host.nft.scratch_listing)
        _replace(patch, process.run, host.run)
        _replace(patch, interfaces.read_interfaces, host.read_interfaces)
        for name in ("error", "warning", "info"):
            patch.setattr(log, name, host.messages.append)
        for name in ("rename", "replace", "unlink"):
            patch.setattr(os, name, _stepping(host, getattr(os, name)))
        patch.setattr(_sqlite3, "connect", _stepping_connections(host))
        patch.setattr(process, "_until", None)
        patch.setattr(conntrack, "is_empty", lambda: not host.connections)
        patch.setattr(netlink, "dump", host.dump)
        patch.setattr(netlink, "send", host.send)
        patch.setattr(hostports, "listeners", lambda: iter(host.listeners))
        patch.setattr(networkd, "DIRECTORIES", ())
        host.nft.before_apply = lambda _text: host.step()
        yield host


def _replace(patch: pytest.MonkeyPatch, real: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Replace a function in all modules that have it."""
    for module in [module for name, module in sys.modules.items() if name.startswith("virt_forward.")]:
        if getattr(module, real.__name__, None) is real:
            patch.setattr(module, real.__name__, fake)


def _stepping_connections(host: FakeHost) -> Callable[..., sqlite3.Connection]:
    """Return what stands in for sqlite3.connect: a transaction's beginning and its commit are steps."""

    class Connection(sqlite3.Connection):
        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            if statement.startswith(("BEGIN", "COMMIT")):
                host.step()
            return super().execute(statement, *parameters)

    return functools.partial(sqlite3.connect, factory=Connection)


def _stepping(host: FakeHost, function: Callable[..., None]) -> Callable[..., None]:
    def step(*arguments: Any, **named: Any) -> None:
        host.step()
        function(*arguments, **named)

    return step
