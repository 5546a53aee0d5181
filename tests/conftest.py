"""What every test shares: the lab, the check that nothing is left behind, and skips that say why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from support import leaks, netns

ROOT_TOOLS = ("nft", "ip", "conntrack")
SYSTEM_TOOLS = ("libvirtd", "virsh", "qemu-system-x86_64", "busybox", "unshare")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("virt-forward")
    group.addoption("--update-golden", action="store_true", help="rewrite the golden files")
    group.addoption("--no-skip", action="store_true", help="a skipped test fails (always so where CI is set)")


def pytest_configure(config: pytest.Config) -> None:
    leaks.adopt_orphans()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whatever is end to end needs root, too: one marker is enough to leave all of it out."""
    if item.get_closest_marker("system"):
        item.add_marker("root")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, the files that take longest come first: they end together."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: [*map(item.get_closest_marker, ("system", "root"))].count(None))


def missing_for(item: pytest.Item) -> str | None:
    if not item.get_closest_marker("root"):
        return None
    if os.geteuid() != 0:
        return "needs root: namespaces, nft"
    tools = ROOT_TOOLS + (SYSTEM_TOOLS if item.get_closest_marker("system") else ())
    missing = [tool for tool in tools if not shutil.which(tool, path=netns.PATH)]
    return f"not installed: {', '.join(missing)} (tests/run installs them)" if missing else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := missing_for(item):
        pytest.skip(reason)


def _no_skip(config: pytest.Config) -> bool:
    return bool(config.getoption("--no-skip") or os.environ.get("CI"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if report.skipped and not hasattr(report, "wasxfail") and _no_skip(item.config):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {report.longrepr}"
    return report  # type: ignore[return-value]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report: pytest.CollectReport = yield  # type: ignore[assignment]
    if report.skipped and _no_skip(collector.config):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {report.longrepr}"
    return report  # type: ignore[return-value]


@pytest.fixture(scope="session", autouse=True)
def nothing_left_by_the_session() -> Iterator[None]:
    before = leaks.traces()
    yield
    left = leaks.leaked_since(before)
    assert not left, f"the tests left behind: {left}"


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a namespace, process, table, mount or file."""
    if not request.node.get_closest_marker("root"):
        yield
        return
    before = leaks.traces()
    yield
    left = leaks.leaked_since(before)
    assert not left, f"this test left behind: {left}"


@pytest.fixture
def lab() -> Iterator[netns.Lab]:
    """Client, host with bridge, no guests yet: see lab.netns."""
    with netns.lab() as built:
        yield built
