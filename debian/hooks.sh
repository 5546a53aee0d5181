# shellcheck shell=sh
# Read by the maintainer scripts: libvirt's hooks, which are files in /etc, but nobody's configuration.

HOOKS=/etc/libvirt/hooks
LIB=/usr/lib/virt-forward

is_ours() { [ -f "$1" ] && [ ! -L "$1" ] && head -n 20 "$1" | grep -q '^# virt-forward hook'; }

is_foreign() { { [ -e "$1" ] || [ -L "$1" ]; } && ! is_ours "$1"; }

refuse_two_foreign() {
    for driver in qemu network; do
        place=$HOOKS/$driver
        if is_foreign "$place" && is_foreign "$place.d/virt-forward"; then
            echo "virt-forward: neither $place nor $place.d/virt-forward is ours:" \
                "rename the second, libvirt runs it under any name" >&2
            exit 1
        fi
    done
}

# Hooks that use the package in directory $1. libvirt runs DRIVER first and then all of DRIVER.d: where DRIVER is somebody's, ours is one of those.
put_hooks() {
    refuse_two_foreign
    for driver in qemu network; do
        place=$HOOKS/$driver
        if is_foreign "$place"; then
            place=$place.d/virt-forward
        elif is_ours "$place.d/virt-forward"; then
            remove_hook "$place.d/virt-forward"
        fi
        mkdir -p "${place%/*}"
        # By a rename: libvirt may run it at any moment.
        sed "s|^LIB = .*|LIB = \"$1\"|" "$LIB/hooks/$driver" >"$HOOKS/.virt-forward"
        chmod 0755 "$HOOKS/.virt-forward"
        mv -f "$HOOKS/.virt-forward" "$place"
    done
}

remove_hooks() {
    for driver in qemu network; do
        for place in "$HOOKS/$driver" "$HOOKS/$driver.d/virt-forward"; do
            if is_ours "$place"; then remove_hook "$place"; fi
        done
    done
    rm -f "$HOOKS/.virt-forward"
}

remove_hook() {
    rm -f "$1"
    case $1 in *.d/virt-forward) rmdir --ignore-fail-on-non-empty "${1%/*}" ;; esac
}

# dpkg replaces the modules one by one. Meanwhile hooks use a copy of those of before; and the ones that have begun
# with the modules themselves end first.
begin_upgrade() {
    rm -rf "$LIB/replaced"
    mkdir "$LIB/replaced"
    cp -a "$LIB/virt_forward" "$LIB/replaced/virt_forward"
    put_hooks "$LIB/replaced"
    wait_unused "$LIB/virt_forward"
}

end_upgrade() {
    put_hooks "$LIB"
    if [ -d "$LIB/replaced" ]; then
        wait_unused "$LIB/replaced/virt_forward"
        rm -rf "$LIB/replaced"
    fi
}

# A hook is given 15 seconds, and has the package open until it ends.
wait_unused() {
    try=0
    while hook_uses "$1" && [ $try -lt 100 ]; do
        sleep 0.2
        try=$((try + 1))
    done
}

hook_uses() {
    find /proc/[0-9]*/fd -lname "$1" 2>/dev/null | while read -r link; do
        tr '\0' ' ' 2>/dev/null <"${link%/fd/*}/cmdline" || true
    done | grep -q "$HOOKS/"
}

# libvirt looks at start, and on SIGHUP, which hooks exist. Guests do not notice.
reload_libvirt() {
    for daemon in libvirtd virtqemud virtnetworkd; do
        pid=$(cat "/run/$daemon.pid" 2>/dev/null) || continue
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$daemon" ]; then kill -HUP "$pid"; fi
    done
}
