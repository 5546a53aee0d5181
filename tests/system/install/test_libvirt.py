"""A real libvirtd, whose guest runs before virt-forward comes and after it has gone."""

from __future__ import annotations

import pytest

from system.install.support import private_host

pytestmark = pytest.mark.system

LIBVIRTD = """
for dir in /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
    mkdir -p $dir
    mount -t tmpfs private $dir
done
rm -f /etc/libvirt/qemu/networks/autostart/*
cat >>/etc/libvirt/qemu.conf <<'EOF'
cgroup_controllers = [ ]
security_driver = "none"
user = "root"
group = "root"
stdio_handler = "file"
namespaces = []
EOF
ip link add virbr0 type bridge
ip address add 10.10.0.1/24 dev virbr0
ip link set virbr0 up

mkdir /run/test
export LIBVIRT_DEFAULT_URI=qemu:///system
libvirtd --pid-file /run/libvirtd.pid >/run/test/libvirtd.log 2>&1 & daemon=$!
trap 'timeout 10 virsh -q destroy web >/dev/null 2>&1 || :; kill $daemon; wait $daemon || :' EXIT
for _ in {1..50}; do timeout 5 virsh -q list >/dev/null 2>&1 && break; sleep 0.2; done

cat >/run/test/web.xml <<'EOF'
<domain type='qemu'>
  <name>web</name>
  <metadata><vf:forwards xmlns:vf="urn:virt-forward:1">
    <vf:host ip="10.10.0.200"/>
    <vf:portForward proto="tcp"><vf:range start="8080" to="80"/></vf:portForward>
  </vf:forwards></metadata>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <interface type='bridge'><source bridge='virbr0'/><model type='virtio'/></interface>
  </devices>
</domain>
EOF
start() { timeout 30 virsh -q create /run/test/web.xml >/dev/null; }
destroy() { timeout 30 virsh -q destroy web >/dev/null; }
tables() { echo "$1: $(nft list tables)"; }
"""


def test_libvirt_sees_hooks_come_and_go_and_its_guest_lives_on() -> None:
    out = private_host(
        LIBVIRTD
        + """
start
guest=$(</run/libvirt/qemu/web.pid)
tables "before it is installed"
"$INSTALL" >/run/test/said
tables "a guest that was running"
kill -0 $guest
destroy
tables "after its end"
start
tables "started without a restart of libvirtd"
guest=$(</run/libvirt/qemu/web.pid)
"$INSTALL" --uninstall >/run/test/said
tables "uninstalled"
kill -0 $guest
destroy
start
tables "started after that"
"""
    )
    assert out.splitlines() == [
        "before it is installed: ",
        "a guest that was running: table inet virt-forward",
        "after its end: ",
        "started without a restart of libvirtd: table inet virt-forward",
        "uninstalled: ",
        "started after that: ",
    ]


def test_foreign_hook_and_ours_both_run() -> None:
    out = private_host(
        LIBVIRTD
        + """
printf '#!/bin/sh\\ncat >/dev/null\\necho "$2" >>/run/test/theirs\\n' >/etc/libvirt/hooks/qemu
chmod +x /etc/libvirt/hooks/qemu
"$INSTALL" >/run/test/said
start
tables "both"
grep -c started /run/test/theirs
"""
    )
    assert out.splitlines() == ["both: table inet virt-forward", "1"]
