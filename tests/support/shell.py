"""A shell on a lab's host, to try things by hand: ``python -m support.shell [lab|host|machine]``, as root.

lab      namespaces and the hooks of this checkout; no libvirt
host     this machine's networkd and libvirtd in namespaces, with virt-forward installed
machine  a booted Debian of its own, with this checkout at /usr/src/virt-forward

A guest "web" is there, with port 8080 of the host forwarded to its port 80. Everything is undone when the
shell ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from support import guest, host, machine, netns, xml
from support.base_host import BaseHost

FORWARD = xml.forwards(xml.port_forward("8080:80"))


def shell(argv: Sequence[str], client: str, help_: str, env: Mapping[str, str] | None = None) -> None:
    """Run a shell and wait for its end; say first how to reach the host from outside."""
    print(
        help_,
        f"from outside:  ip netns exec {client} …  (host 192.0.2.1, 2001:db8:1::1)",
        sep="\n",
        flush=True,
    )
    subprocess.run([*argv, "bash"], env={**os.environ, **(env or {})}, check=False)


def lab() -> None:
    """Offer a shell in the host's network namespace, with one guest that serves port 80."""
    with netns.lab() as made:
        made.guest("web").serve("tcp", 80, name="web")
        metadata = xml.forwards(xml.host_ip(netns.GUEST4), xml.port_forward("8080:80"))
        (made.dir / "web.xml").write_text(xml.domain("web", metadata))
        env = {**made.env, "PYTHONPATH": "lib", "CLIENT": made.client.name, "XML": str(made.dir / "web.xml")}
        help_ = """\
start it:      hooks/qemu web prepare begin - <$XML && hooks/qemu web started begin - <$XML
look:          nft list table inet virt-forward; ls -R $VIRT_FORWARD_RUN_DIR
ask the guest: ip netns exec $CLIENT bash -c 'exec 3<>/dev/tcp/192.0.2.1/8080; echo >&3; head -1 <&3'
stop it:       hooks/qemu web stopped end - <$XML"""
        shell(["ip", "netns", "exec", made.host.name], made.client.name, help_, env)


def inside(made: BaseHost, more: str) -> None:
    """Offer a shell on a host with libvirt."""
    made.define(guest.Guest("web", metadata=FORWARD))
    enter = ["nsenter", f"--target={made.init}", *made.namespaces, "--wdns=/"]
    shell(
        enter,
        made.client.name,
        f"{more}start it:      virsh start web; virt-forward list; virt-forward check",
    )


def main(kind: str = "lab") -> None:
    """Build what is asked for, and run the shell in it."""
    if kind == "host":
        with host.host() as made:
            inside(made, "")
    elif kind == "machine":
        with machine.machine() as booted:
            inside(booted, "install it:    /usr/src/virt-forward/install.sh\n")
    else:
        lab()


if __name__ == "__main__":
    main(*sys.argv[1:])
