"""A guest's whole system: busybox, a few kernel modules, and one script, as an initramfs."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

# The order is that of their symbols: insmod resolves nothing by itself.
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
    "failover", "net_failover", "virtio_net",
)  # fmt: skip

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec >/dev/console 2>&1
word() { sed -n "s/.*vf[.]$1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }
for module in @MODULES@; do
    insmod /modules/$module.ko || echo "vf: $module did not load"
done
name=$(word name)
hostname "$name"
echo "guest $name" >/www/index.html
# Duplicate address detection would make the guest wait a second for its own address.
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
# A guest with another MAC address may have had this address a moment ago, and its host may ask again only
# after 53 s: a bridge that loses its carrier forgets its neighbours, but not if it is back within a second.
echo 1 >/proc/sys/net/ipv6/conf/eth0/ndisc_notify
ip link set lo up
ip link set eth0 up
if [ -n "$(word ip6)" ]; then
    ip -6 addr add "$(word ip6)" dev eth0
    ip -6 route add default via "$(word gw6)"
fi
if [ -n "$(word ip4)" ]; then
    ip addr add "$(word ip4)" dev eth0
    ip route add default via "$(word gw4)"
else
    udhcpc -i eth0 -s /udhcpc -t 30 -T 1 -A 1 -x hostname:"$name" -f &
fi
httpd -p 80 -h /www
echo "vf: guest $name serves"
# Any further NIC, there from the start or plugged in later, asks by DHCP.
asked=" eth0-$(cat /sys/class/net/eth0/ifindex) "
while :; do
    for path in /sys/class/net/eth*; do
        nic=${path##*/}
        this=$nic-$(cat "$path/ifindex") || continue
        case $asked in *" $this "*) continue ;; esac
        asked="$asked$this "
        ip link set "$nic" up
        udhcpc -i "$nic" -s /udhcpc -t 30 -T 1 -A 1 -f &
    done
    sleep 0.3
done
"""

UDHCPC = """\
#!/bin/sh
case $1 in
    deconfig) ip -4 addr flush dev "$interface" ;;
    bound | renew)
        ip addr replace "$ip/$mask" dev "$interface"
        ip route | grep -q ^default || ip route add default via "$router"
        echo "vf: address $ip" ;;
esac
"""

WHO = """\
#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
client=${REMOTE_ADDR#[}
client=${client%]}
echo "$(hostname) ${client#::ffff:}"
"""

# The page has to be out of the door before the power is.
POWER = """\
#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\nbye\\n'
(sleep 0.2; @ACTION@ -f) >/dev/null 2>&1 </dev/null &
"""


def modules_in(tree: Path) -> Iterator[tuple[str, bytes]]:
    """Find the modules in an unpacked kernel package; one built into the kernel needs no file."""
    built_in = next(tree.glob("**/modules.builtin")).read_text()
    for name in MODULES:
        found = next(tree.glob(f"**/{name}.ko*"), None)
        if found:
            data = found.read_bytes()
            yield name, lzma.decompress(data) if found.suffix == ".xz" else data
        elif f"/{name}.ko\n" not in built_in:
            raise FileNotFoundError(f"module {name} is neither in {tree} nor in its kernel")


def build(kernel: Path) -> bytes:
    """Pack the initramfs for the kernel package unpacked at ``kernel``."""
    modules = list(modules_in(kernel))
    busybox = shutil.which("busybox") or "/bin/busybox"
    init = INIT.replace("@MODULES@", " ".join(name for name, _ in modules))
    programs = {
        "init": init,
        "udhcpc": UDHCPC,
        "www/cgi-bin/who": WHO,
        "www/cgi-bin/poweroff": POWER.replace("@ACTION@", "poweroff"),
        "www/cgi-bin/reboot": POWER.replace("@ACTION@", "reboot"),
    }
    files = [("bin/busybox", Path(busybox).read_bytes())]
    files += [(path, text.encode()) for path, text in programs.items()]
    files += [(f"modules/{name}.ko", data) for name, data in modules]
    folders = ("bin", "dev", "proc", "sys", "modules", "www", "www/cgi-bin")
    return gzip.compress(cpio([*((folder, None) for folder in folders), *files]), 1)


def digest() -> str:
    """Return what changes whenever the guest's own files do."""
    return hashlib.sha256("".join((*MODULES, INIT, UDHCPC, WHO, POWER)).encode()).hexdigest()[:12]


def cpio(entries: Iterable[tuple[str, bytes | None]]) -> bytes:
    """Write a "newc" archive; an entry without content is a directory."""
    packed = bytearray()
    for number, (path, data) in enumerate(entries, 1):
        packed += _entry(number, path, 0o40755 if data is None else 0o100755, data or b"")
    return bytes(packed + _entry(0, "TRAILER!!!", 0, b""))


def _entry(number: int, path: str, mode: int, data: bytes) -> bytes:
    name = path.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
