#!/bin/bash
# The first process of a host made of namespaces: it lays the host's own /etc, /run and /var over the machine's,
# starts networkd, and then only reaps.  Called as: host.sh SCRATCH, where SCRATCH/etc holds files to be copied.
set -euo pipefail
scratch=$1

mount -t tmpfs lab "$scratch/over"
for top in etc var/lib var/log var/cache usr/local root; do
    mkdir -p "$scratch/over/$top"/{upper,work}
    mount -t overlay lab -o "lowerdir=/$top,upperdir=$scratch/over/$top/upper,workdir=$scratch/over/$top/work" "/$top"
done
mount -t tmpfs -o mode=0755 run /run
# networkd waits for udev to name an interface, unless /sys cannot be written.
mount -o remount,ro,bind /sys

rm -rf /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/systemd/network /etc/virt-forward \
    /var/lib/systemd/network /usr/local/lib/virt-forward
mkdir -p /etc/libvirt/{qemu,hooks} /var/{lib,log,cache}/libvirt/qemu /var/lib/libvirt/{dnsmasq,network,images} \
    /etc/systemd/network /run/{lab,lock,netns} /run/systemd/netif/{leases,links,lldp} /var/lib/systemd/network
chown -R systemd-network: /run/systemd/netif /var/lib/systemd/network
cp -a "$scratch/files/." /

/usr/lib/systemd/systemd-networkd &>/run/lab/networkd.log </dev/null &
# Since version 256 its DHCP server waits to be told that its leases can be kept; a unit does that elsewhere.
if networkctl --help | grep -q persistent-storage; then
    until [[ -S /run/systemd/netif/io.systemd.Network ]]; do sleep 0.02; done
    networkctl persistent-storage yes
fi
echo ready >/run/lab/ready
# A bash that waits also reaps what was orphaned to it.
while :; do
    sleep 3600 &
    wait $!
done
