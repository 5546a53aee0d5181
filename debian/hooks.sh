# shellcheck shell=sh
# Read by the maintainer scripts: libvirt's hooks, which are files in /etc, but nobody's configuration.

HOOKS=/etc/libvirt/hooks

is_ours() { [ -f "$1" ] && [ ! -L "$1" ] && head -n 20 "$1" | grep -q '^# virt-forward hook'; }

# libvirt runs DRIVER first and then all of DRIVER.d: where DRIVER is somebody's, ours is one of those.
put_hooks() {
    for driver in qemu network; do
        place=$HOOKS/$driver
        if { [ -e "$place" ] || [ -L "$place" ]; } && ! is_ours "$place"; then
            place=$place.d/virt-forward
        elif is_ours "$place.d/virt-forward"; then
            remove_hook "$place.d/virt-forward"
        fi
        mkdir -p "${place%/*}"
        # By a rename: libvirt may run it at any moment.
        cp "/usr/lib/virt-forward/hooks/$driver" "$HOOKS/.virt-forward"
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

# libvirt looks at start, and on SIGHUP, which hooks exist. Guests do not notice.
reload_libvirt() {
    for daemon in libvirtd virtqemud virtnetworkd; do
        pid=$(cat "/run/$daemon.pid" 2>/dev/null) || continue
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$daemon" ]; then kill -HUP "$pid"; fi
    done
}
