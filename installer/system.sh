# shellcheck shell=bash
# The running system: systemd, libvirt and the kernel's rules. Read by install.sh.
# shellcheck disable=SC2154 # the lower-case globals are install.sh's

# What fails here is told, and stops nothing: the rest of the work does not depend on it.
attempt() {
    local said
    said=$("$@" 2>&1) || note "'$*' failed: ${said%%$'\n'*}"
}

start_work() {
    label_files
    selinux_note
    reload_systemd
    start_service
    reload_libvirt
    act "run: virt-forward sync, for guests that run already" first_sync
}

check_work() { act "run: virt-forward check" first_check; }

first_sync() {
    local said
    said=$(timeout 60 "$prefix/bin/virt-forward" sync 2>&1) ||
        note "not done, do it when libvirt runs: ${said%%$'\n'*}"
}

first_check() { timeout 60 "$prefix/bin/virt-forward" check || note 'virt-forward check did not succeed: see above'; }

# Files that were renamed into place bear the label of the place where they were written.
label_files() {
    local -a places=("$libdir" "$hooks_dir" "${files[@]}")
    command -v restorecon >/dev/null || return 0
    act "run: restorecon -R ${places[*]}" attempt restorecon -R -- "${places[@]}"
}

selinux_note() {
    [[ $(getenforce 2>/dev/null || true) == Enforcing ]] || return 0
    [[ $(getsebool virt_hooks_unconfined 2>/dev/null || true) != *on ]] || return 0
    note 'SELinux is enforcing, and guests with hooks may fail to start until you allow hooks to run:'
    note '    setsebool -P virt_hooks_unconfined on'
}

reload_systemd() {
    [[ -d /run/systemd/system ]] || return 0
    act 'run: systemctl daemon-reload' attempt systemctl daemon-reload
}

# One that runs is to run this version, whoever started it.
start_service() {
    [[ -d /run/systemd/system ]] || return 0
    if [[ $with_service == no ]]; then
        act 'run: systemctl try-restart virt-forward' attempt systemctl try-restart virt-forward
    else
        act 'run: systemctl enable virt-forward' attempt systemctl -q enable virt-forward
        act 'run: systemctl restart virt-forward' attempt systemctl restart virt-forward
    fi
}

# A unit whose file has gone can be stopped, but not disabled.
stop_service() {
    [[ -d /run/systemd/system && ! $(service_state) =~ ^(inactive|failed|)$ ]] || return 0
    act 'run: systemctl stop virt-forward' attempt systemctl -q stop virt-forward
}

service_state() { systemctl show --property=ActiveState --value virt-forward.service 2>/dev/null || true; }

# A service that has failed is known to systemd even without its unit.
forget_unit() {
    reload_systemd
    [[ ! -d /run/systemd/system || $(service_state) != failed ]] ||
        act 'run: systemctl reset-failed virt-forward' attempt systemctl -q reset-failed virt-forward
}

# libvirt looks at start, and on SIGHUP, which hooks exist. Guests do not notice.
reload_libvirt() {
    local daemon pid found=no
    for daemon in libvirtd virtqemud virtnetworkd; do
        if [[ -d /run/systemd/system ]] && systemctl -q is-active "$daemon.service"; then
            act "run: systemctl reload $daemon.service" attempt systemctl reload "$daemon.service"
            found=yes
        elif pid=$(daemon_pid "$daemon"); then
            act "send SIGHUP to $daemon ($pid)" attempt kill -HUP "$pid"
            found=yes
        fi
    done
    # virt-forward check compares it with the hooks.
    [[ $dry_run == yes || $action != install ]] || { install -d -m 0700 "$run_dir" && touch "$run_dir/libvirt-reloaded"; }
    [[ $found == yes ]] || note 'no libvirt daemon runs; the next one that starts sees the change'
}

daemon_pid() {
    local pid
    pid=$(cat "/run/$1.pid" 2>/dev/null) || return 1
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]] && printf '%s\n' "$pid"
}

stop_work() {
    stop_service
    reload_libvirt
    if exists "$run_dir" || [[ -n $(libvirt_version) ]]; then
        act 'close all forwards, end their connections, and take back what was set for them' attempt close_forwards
    fi
    remove_table
    if exists "$run_dir"; then act "remove $run_dir" rm -rf -- "$run_dir"; fi
}

# The package undoes what it did: it alone knows what that was.
close_forwards() {
    timeout 60 "$python" -I -c 'import sys; sys.path.insert(0, sys.argv[1])
from virt_forward.reconcile.teardown import main; sys.exit(main())' "$repo/lib"
}

remove_table() {
    if nft list table inet virt-forward >/dev/null 2>&1; then
        act 'delete the nft table inet virt-forward' attempt nft delete table inet virt-forward
    fi
}
