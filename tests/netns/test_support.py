"""The lab itself: what it says about where a payload went has to be true before it is used to veto."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from support import leaks, netns, payload, proc
from support.netns import CLIENT4, CLIENT6, GUEST4, GUEST6, HOST4, HOST6, Lab

pytestmark = pytest.mark.root

DNAT = f"""
table inet hand {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    iifname enp1s0 meta nfproto ipv4 th dport 8080 meta l4proto {{ tcp, udp, sctp }} dnat ip to {GUEST4}:80
    iifname enp1s0 meta nfproto ipv6 th dport 8080 meta l4proto {{ tcp, udp, sctp }} dnat ip6 to [{GUEST6}]:80
  }}
}}
"""


@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize(("host", "client"), [(HOST4, CLIENT4), (HOST6, CLIENT6)])
def test_hand_written_forward_is_seen_to_work(lab: Lab, proto: str, host: str, client: str) -> None:
    guest = lab.guest("web")
    guest.serve(proto, 80, name="web")
    assert lab.client.unanswered(host, 8080, proto)
    lab.host.nft(DNAT)
    answer = lab.client.ask(host, 8080, proto)
    assert answer is not None
    assert (answer.name, answer.source, answer.port) == ("web", client, 80)


@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
def test_server_that_has_settled_has_told_of_everybody_who_reached_it(lab: Lab, proto: str) -> None:
    """What silence is judged by: a client that does not wait for the answer is heard all the same."""
    server = lab.guest("web").serve(proto, 80, name="web")
    for number in range(20):
        with contextlib.suppress(TimeoutError):
            payload.ask(lab.host.path, GUEST4, 80, proto, wait=0.001)
        server.settle()
        assert len(server.asked) == number + 1


def test_client_reaches_no_guest_by_itself(lab: Lab) -> None:
    guest = lab.guest("web")
    guest.serve("tcp", 80)
    assert lab.client.unanswered(GUEST4, 80)
    assert lab.client.unanswered(GUEST6, 80)
    assert lab.host.ask(GUEST4, 80) is not None


def test_flow_stays_open_and_says_when_it_no_longer_is(lab: Lab) -> None:
    guest = lab.guest("web")
    guest.serve("tcp", 80)
    lab.host.nft(DNAT)
    talk = lab.client.conversation(HOST4, 8080)
    assert talk.ask() is not None
    assert talk.ask() is not None
    guest.ip("link set eth0 down")
    assert talk.unanswered()


def test_second_uplink_and_second_bridge(lab: Lab) -> None:
    other = lab.second_client()
    lab.add_bridge("br1", "10.20.0.1/24")
    far = lab.guest("far", "10.20.0.5", None, "52:54:00:00:00:05", bridge="br1", gateway4="10.20.0.1")
    far.serve("udp", 53)
    assert lab.host.ask("10.20.0.5", 53, "udp") is not None
    lab.host.serve("tcp", 80, name="host")
    answer = other.ask(netns.SECOND_HOST4, 80)
    assert answer is not None
    assert (answer.name, answer.source) == ("host", netns.SECOND_CLIENT4)


def test_leaks_are_named(lab: Lab, tmp_path: Path) -> None:
    before = leaks.traces()
    stray = netns.Ns(f"{netns.PREFIX}stray")
    orphan = proc.run(["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"]).out.strip()
    left = leaks.leaked_since(before, patience=0.2)
    stray.remove()
    proc.run(["kill", orphan])
    assert [line.split()[0] for line in left] == ["network", "process"]
    assert f"process {orphan}: sleep 60" in left[1]
    assert leaks.leaked_since(before) == []


def test_failed_command_is_told_ready_to_paste() -> None:
    said = r"(?s)\$ cat - /none <<'EOF'.*exit status 1.*No such file"
    with pytest.raises(proc.CommandFailedError, match=said):
        proc.run(["cat", "-", "/none"], stdin="words")


def test_command_that_hangs_is_ended_with_its_children() -> None:
    with pytest.raises(proc.CommandFailedError, match="not done after"):
        proc.run(["sh", "-c", "sleep 61 & wait"], timeout=0.3)
    assert subprocess.run(["pgrep", "-x", "-f", "sleep 61"], check=False, capture_output=True).stdout == b""
