#!/bin/bash
# Run a command as root of a root file system that stays as it is; what it writes goes to memory, and with it.
# Called in namespaces of its own as: bare.sh ROOTFS REPO SOURCE COMMAND…
set -euo pipefail
rootfs=$1 repo=$2 source=$3
shift 3

mount -t tmpfs -o mode=0755 bare /run
mkdir /run/{upper,work,root}
mount -t overlay bare /run/root -o "lowerdir=$rootfs,upperdir=/run/upper,workdir=/run/work"
cd /run/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs -o mode=0755 run run
mkdir -p "./$source"
mount --bind "$repo" "./$source"
mount -o remount,bind,ro "./$source"
exec chroot . "$@"
