#!/bin/bash
# Boot a root file system that stays as it is: what the machine writes goes to memory, and with it.
# ROOTFS may be several directories, the topmost first.
# Called in a mount namespace of its own as: machine.sh SCRATCH ROOTFS[:ROOTFS] CGROUP[,CGROUP] [systemd-nspawn option…]
set -euo pipefail
scratch=$1 rootfs=$2
IFS=, read -ra cgroups <<<"$3"
shift 3

for cgroup in "${cgroups[@]}"; do
    mkdir "$cgroup"
    echo $$ >"$cgroup/cgroup.procs"
done

mount -t tmpfs machine "$scratch/over"
mkdir "$scratch/over"/{upper,work,root}
mount -t overlay machine "$scratch/over/root" \
    -o "lowerdir=$rootfs,upperdir=$scratch/over/upper,workdir=$scratch/over/work"
cp -a "$scratch/files/." "$scratch/over/root/"

# What runs in it sets forwarding and route_localnet, as on any host.
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
# systemd 256 and newer start on unified control groups only.
export UNIFIED_CGROUP_HIERARCHY=1 SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
exec systemd-nspawn --quiet --boot --register=no --keep-unit --capability=all --bind=/dev/net/tun \
    --link-journal=no --machine=host --console=passive --directory="$scratch/over/root" "$@"
