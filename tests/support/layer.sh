#!/bin/bash
# Install packages on top of a root file system that stays as it is; what they add goes to FOLDER/upper.
# Called in a mount namespace of its own as: layer.sh ROOTFS FOLDER UNIT,UNIT PACKAGE…
set -euo pipefail
rootfs=$1 folder=$2
IFS=, read -ra disabled <<<"$3"
shift 3

mkdir "$folder"/{upper,work,root}
mount -t overlay layer "$folder/root" -o "lowerdir=$rootfs,upperdir=$folder/upper,workdir=$folder/work"
cd "$folder/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs run run
cp --remove-destination /etc/resolv.conf etc/resolv.conf
# No daemon is started by its package.
printf '#!/bin/sh\nexit 101\n' >usr/sbin/policy-rc.d
chmod +x usr/sbin/policy-rc.d
export DEBIAN_FRONTEND=noninteractive
chroot . apt-get -qq update
chroot . apt-get -qq -y --no-install-recommends -o DPkg::Options::=--force-unsafe-io install "$@" >/dev/null
chroot . apt-get clean
rm usr/sbin/policy-rc.d
systemctl --quiet --root=. disable "${disabled[@]}"
cd /
umount --recursive "$folder/root"
rm -r "$folder/work" "$folder/root"
