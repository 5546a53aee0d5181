#!/bin/bash
# Installs virt-forward, takes it away again, or shows it at work. See --help and docs/install.md.
set -euo pipefail
shopt -s nullglob

usage() {
    cat <<'EOF'
Usage: sudo ./install.sh [--no-service] [--dry-run]  install, or bring an installation up to date
       sudo ./install.sh --uninstall [--dry-run]     take away all that the installation made
       sudo ./install.sh --demo [--dry-run]          show the main job in throwaway network namespaces
       ./install.sh --help

  --no-service  do not enable or start virt-forward.service; one that runs is restarted
  --dry-run     say what would be done, and touch nothing

Environment:
  PREFIX      where the command and the package go (/usr/local)
  DESTDIR     for packagers: a root to install into; files only, no packages, no reload, no rules
EOF
}

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
data=$repo/lib/virt_forward/data
python=/usr/bin/python3
os_release=/etc/os-release
hooks_dir=/etc/libvirt/hooks
unit=/etc/systemd/system/virt-forward.service
run_dir=/run/virt-forward
config=/etc/virt-forward/config.toml
root=${DESTDIR:-}
prefix=${PREFIX:-/usr/local}
libdir='' # set by places
action=install dry_run=no with_service=yes finished=yes
declare -a files=() staged=()
declare -A source_of=() mode_of=()

# shellcheck source=installer/packages.sh
. "$repo/installer/packages.sh"
# shellcheck source=installer/system.sh
. "$repo/installer/system.sh"

# ---- words ----------------------------------------------------------------------------------

fail() {
    printf 'install.sh: error: %s\n' "$1" >&2
    exit "${2:-1}"
}

note() { printf 'note: %s\n' "$*"; }

# The words and the deed in one place, so that --dry-run cannot tell another story.
act() {
    local words=$1
    shift
    if [[ $dry_run == yes ]]; then
        printf 'would %s\n' "$words"
        return
    fi
    printf '%s\n' "$words"
    "$@"
}

at_exit() {
    local status=$?
    ((${#staged[@]} == 0)) || rm -rf -- "${staged[@]}"
    [[ $finished == yes ]] ||
        printf 'install.sh: error: stopped half-way; run it again with the same PREFIX, also to --uninstall\n' >&2
    exit "$status"
}

# ---- places ---------------------------------------------------------------------------------

places() {
    prefix=${prefix%/} root=${root%/}
    [[ $prefix == /* ]] || fail "PREFIX must be an absolute path, not '$prefix'" 2
    [[ -z $root || $root == /* ]] || fail "DESTDIR must be an absolute path, not '$root'" 2
    # It is written into Python source and unit files: no quoting there, so nothing to quote.
    [[ $prefix =~ ^[A-Za-z0-9/._+-]+$ ]] || fail "PREFIX may hold letters, digits and /._+- only: '$prefix'" 2
    libdir=$prefix/lib/virt-forward
}

# One line for each file outside the package: to ship another unit or completion, add its line.
list_files() {
    local page
    one_file 0755 "$prefix/bin/virt-forward" "$data/launcher"
    for page in "$data"/*.[1-8]; do
        one_file 0644 "$prefix/share/man/man${page##*.}/${page##*/}" "$page"
    done
    one_file 0644 "$prefix/share/bash-completion/completions/virt-forward" "$data/virt-forward.bash"
    one_file 0644 "$prefix/share/zsh/site-functions/_virt-forward" "$data/_virt-forward"
    one_file 0644 "$prefix/share/fish/vendor_completions.d/virt-forward.fish" "$data/virt-forward.fish"
    one_file 0644 "$unit" "$data/virt-forward.service"
    one_file 0644 /etc/systemd/system/nftables.service.d/virt-forward.conf "$data/nftables-virt-forward.conf"
}

one_file() {
    files+=("$2")
    mode_of[$2]=$1 source_of[$2]=$3
}

is_ours() { [[ -f $1 && ! -L $1 ]] && head -n 20 -- "$1" | grep -q '^# virt-forward hook'; }

exists() { [[ -e $1 || -L $1 ]]; }

is_foreign() { exists "$1" && ! is_ours "$1"; }

# libvirt runs DRIVER first and then all of DRIVER.d: where DRIVER is somebody's, ours is one of those.
hook_place() {
    local place=$hooks_dir/$1
    if is_foreign "$root$place"; then
        place=$hooks_dir/$1.d/virt-forward
    fi
    printf '%s\n' "$place"
}

installed_hooks() {
    local driver place
    for driver in qemu network; do
        for place in "$hooks_dir/$driver" "$hooks_dir/$driver.d/virt-forward"; do
            if is_ours "$root$place"; then printf '%s\n' "$place"; fi
        done
    done
}

# Each installed hook names the package it needs, and the unit the command; the unit is the last to be removed.
installed_libdir() {
    local hook
    while read -r hook; do
        sed -n 's/^LIB = "\(.*\)"$/\1/p' "$root$hook"
        return
    done < <(installed_hooks)
    [[ ! -f $root$unit ]] || sed -n 's|^ExecStart=\(.*\)/bin/virt-forward .*|\1/lib/virt-forward|p' "$root$unit"
}

# One installation has one PREFIX, which only its hooks and its unit name.
need_same_prefix() {
    local there
    there=$(installed_libdir)
    [[ -z $there || $there == "$libdir" ]] ||
        fail "it is installed with PREFIX=${there%/lib/virt-forward}: use that, or $1"
}

# ---- install --------------------------------------------------------------------------------

# Directories that we make are written down, so that --uninstall knows which were there before.
make_dir() {
    local dir=$1
    local -a new=()
    while [[ ! -d $root$dir && $dir == /?* ]]; do
        new=("$dir" "${new[@]}")
        dir=${dir%/*}
    done
    ((${#new[@]})) || return 0
    act "make directory $root$1" record_and_make "$root$1" "${new[@]}"
}

# Written down first: what was made and is on no list would stay for ever. Only the directory of the list itself
# cannot be on it before it is made, so nothing may come between the two.
record_and_make() (
    trap '' INT TERM HUP
    [[ -d $root$libdir ]] || mkdir -p -- "$root$libdir"
    printf '%s\n' "${@:2}" >>"$root$libdir/made-directories"
    mkdir -p -- "$1"
)

# Renamed into place: libvirt may run a hook at any moment, and must never see half of one.
put_file() {
    local mode=$1 place=$2 from=$3 stage=$root$libdir/.stage
    if [[ $place == "$hooks_dir"/* ]]; then stage=$root$hooks_dir/.virt-forward; fi
    make_dir "${place%/*}"
    act "write $root$place ($mode)" write_file "$mode" "$root$place" "$from" "$stage"
}

write_file() {
    staged+=("$4")
    sed "s|/usr/local/lib/virt-forward|$libdir|; s|/usr/local/bin/virt-forward|$prefix/bin/virt-forward|" "$3" >"$4"
    chmod "$1" "$4"
    mv -fT -- "$4" "$2"
}

# The package is in a directory that is named after its content, and virt_forward is a link to it. An upgrade
# switches the link by one rename(2); a hook that runs goes on with the package it has begun with (hooks/qemu).
put_package() {
    act "copy the package to $root$libdir/virt_forward and compile it" copy_package
}

copy_package() {
    local here=$root$libdir name
    staged+=("$here/.new" "$here/.link")
    rm -rf -- "$here/.new" "$here/.link"
    mkdir -- "$here/.new"
    cp -R -- "$repo/lib/virt_forward" "$here/.new/virt_forward"
    find "$here/.new" -name __pycache__ -prune -exec rm -rf {} +
    chmod -R u=rwX,go=rX "$here/.new"
    compile_package "$here/.new/virt_forward"
    name=package-$(cd "$here/.new" && find . -name '*.pyc' -o -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-12)
    if [[ -d $here/$name ]]; then
        exchange "$here/.new" "$here/$name"
    else
        mv -T -- "$here/.new" "$here/$name"
    fi
    switch_link "$here" "$name/virt_forward"
}

switch_link() {
    ln -s -- "$2" "$1/.link"
    if [[ -d $1/virt_forward && ! -L $1/virt_forward ]]; then
        exchange "$1/.link" "$1/virt_forward" # a version before this had a directory there
    else
        mv -fT -- "$1/.link" "$1/virt_forward"
    fi
}

# renameat2(2) with RENAME_EXCHANGE, or three renames where the file system cannot do that.
exchange() {
    "$python" -I -c 'import ctypes, os, sys
here, there = map(os.fsencode, sys.argv[1:])
sys.exit(ctypes.CDLL(None).renameat2(-100, here, -100, there, 2) != 0)' "$1" "$2" || {
        mv -T -- "$2" "$1.other"
        mv -T -- "$1" "$2"
        mv -T -- "$1.other" "$1"
    }
}

# Compiled now, by the Python that will run it: otherwise root's hooks would write to PREFIX. Unchecked, as whoever
# copies an installed tree (a packager, a backup) may change the times of the files, and the directory is replaced
# as a whole.
compile_package() {
    "$python" -I -m compileall -q --invalidation-mode unchecked-hash -s "$1" -p "$libdir/virt_forward" "$1"
}

remove_replaced() {
    local dir current=''
    [[ ! -L $root$libdir/virt_forward ]] || current=$(readlink -- "$root$libdir/virt_forward")
    for dir in "$root$libdir"/package-*; do
        [[ ${current%%/*} == "${dir##*/}" ]] || act "remove $dir, which was replaced" remove_unused "$dir"
    done
}

remove_unused() {
    if wait_unused "$1"; then rm -rf -- "$1"; else note "a program still uses $1; the next installation removes it"; fi
}

# A hook is given 15 seconds, and has the package open until it ends. A packager's root has none.
wait_unused() {
    local try
    for ((try = 0; try < 100; try++)); do
        [[ -z $root && -n $(find /proc/[0-9]*/fd -lname "$1/*" -print -quit 2>/dev/null) ]] || return 0
        sleep 0.2
    done
    return 1
}

put_hooks() {
    local driver place
    for driver in qemu network; do
        place=$(hook_place "$driver")
        if [[ $place == *.d/virt-forward ]]; then
            note "$root$hooks_dir/$driver is not ours and stays as it is"
        elif is_ours "$root$place.d/virt-forward"; then
            act "remove $root$place.d/virt-forward" rm -f -- "$root$place.d/virt-forward"
        fi
        put_file 0755 "$place" "$repo/hooks/$driver"
    done
}

# Before the first file is touched: what would make half an installation.
check_install() {
    local file driver place
    for file in "${source_of[@]}" "$repo"/hooks/{qemu,network}; do
        [[ -f $file ]] || fail "$file is missing: this checkout is not complete"
    done
    need_same_prefix '--uninstall it first'
    for driver in qemu network; do
        place=$(hook_place "$driver")
        [[ $place == *.d/virt-forward ]] || continue
        need_hook_dirs "$driver"
        ! is_foreign "$root$place" ||
            fail "neither $root$hooks_dir/$driver nor $root$place is ours: rename the second, libvirt runs it under any name"
    done
}

need_hook_dirs() {
    local version
    version=$(libvirt_version)
    [[ -n $root || -z $version ]] || printf '6.5\n%s\n' "$version" | sort -CV ||
        fail "$hooks_dir/$1 is somebody else's, and libvirt $version runs no second one: it takes libvirt 6.5"
}

libvirt_version() {
    local daemon
    for daemon in libvirtd virtqemud; do
        command -v "$daemon" >/dev/null || continue
        "$daemon" --version | sed -n 's/.* \([0-9][0-9.]*\)$/\1/p'
        return
    done
}

install_all() {
    local place
    list_files
    if [[ -z $root ]]; then need_packages python3 python3-sqlite3 python3-lxml python3-libvirt nftables iproute2; fi
    need_python
    check_install
    if [[ $dry_run == no ]]; then finished=no; fi
    make_dir "$libdir"
    # The first file, as it tells --uninstall the PREFIX; nothing starts it yet.
    put_file 0644 "$unit" "${source_of[$unit]}"
    put_package
    for place in "${files[@]}"; do
        [[ $place == "$unit" ]] || put_file "${mode_of[$place]}" "$place" "${source_of[$place]}"
    done
    put_hooks # last: from here on libvirt may call them
    [[ -n $root ]] || start_work
    remove_replaced
    finished=yes
    [[ -n $root ]] || check_work
    [[ -n $root || $dry_run == yes ]] ||
        note 'virt-forward add GUEST 8080:80 forwards a port; for a bridge of your own, virt-forward init before it'
}

# ---- uninstall ------------------------------------------------------------------------------

# What an interrupted run has left is as good as a whole installation: each step takes what it finds.
uninstall_all() {
    local there place
    there=$(installed_libdir)
    if [[ -z ${PREFIX:-} && -n $there ]]; then prefix=${there%/lib/virt-forward}; fi
    places
    need_same_prefix none
    list_files
    # Hooks first: one without its package would refuse every start.
    while read -r place; do remove_file "$place"; done < <(installed_hooks)
    remove_file "$hooks_dir/.virt-forward"
    [[ -n $root ]] || stop_work
    for place in "$root"/etc/systemd/system/*.{wants,requires}/virt-forward.service; do
        remove_file "${place#"$root"}"
    done
    for place in "${files[@]}"; do
        [[ $place == "$unit" ]] || remove_file "$place"
    done
    remove_tree
    if exists "$root$config"; then note "$root$config is yours and stays"; fi
}

remove_file() {
    exists "$root$1" || return 0
    act "remove $root$1" rm -f -- "$root$1"
}

# The unit tells the PREFIX and the package's directory which directories were made: a run that is cut short
# must find both, so these go last and together.
remove_tree() {
    local place
    local -a last=() made=()
    for place in "$libdir" "$unit"; do
        if exists "$root$place"; then last+=("$root$place"); fi
    done
    [[ ! -f $root$libdir/made-directories ]] ||
        mapfile -t made < <(sort -ru -- "$root$libdir/made-directories")
    ((${#last[@]} == 0)) ||
        act "remove ${last[*]}, and the directories that the installation made, if they are empty" remove_last
    [[ -n $root ]] || forget_unit
    if exists "$root$unit.d"; then note "$root$unit.d is not from this installer and stays"; fi
}

remove_last() (
    local dir
    trap '' INT TERM HUP
    for dir in "$root$libdir"/package-*; do
        wait_unused "$dir" || true
    done
    rm -rf -- "${last[@]}"
    ((${#made[@]} == 0)) || rmdir --ignore-fail-on-non-empty -- "${made[@]/#/$root}" 2>/dev/null || true
)

# ---- demo -----------------------------------------------------------------------------------

demo() {
    if [[ $dry_run == no ]]; then need_namespaces; fi
    need_packages python3 python3-sqlite3 python3-lxml nftables iproute2
    need_python
    if [[ $dry_run == yes ]]; then
        act "run: $python -I demo/demo.py, in namespaces that end with it"
        return
    fi
    [[ -f $repo/hooks/qemu ]] || fail "$repo/hooks/qemu is missing: this checkout is not complete"
    exec "$python" -I "$repo/demo/demo.py"
}

# Before anything is installed for it.
need_namespaces() {
    local why capabilities
    local -r remedy='run the demo on a machine, real or virtual, or in a privileged container'
    why=$(unshare --mount --net mount -n -t tmpfs virt-forward-demo /run 2>&1) ||
        fail "namespaces cannot be made here (${why%%$'\n'*}): $remedy"
    capabilities=$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status)
    ((16#$capabilities >> 12 & 1)) || fail "networks cannot be set up here (no CAP_NET_ADMIN): $remedy"
    why=$(unshare --mount --net tee /proc/sys/net/ipv4/ip_forward 2>&1 <<<1 >/dev/null) ||
        fail "forwarding cannot be switched on here (${why%%$'\n'*}): $remedy whose /proc/sys/net is writable"
}

# ---- command line ---------------------------------------------------------------------------

parse() {
    local word chosen=''
    for word in "$@"; do
        case $word in
            --help | -h) usage && exit ;;
            --dry-run) dry_run=yes ;;
            --no-service) with_service=no ;;
            --uninstall | --demo)
                [[ -z $chosen ]] || fail "$chosen and $word do not go together" 2
                chosen=$word action=${word#--}
                ;;
            *) fail "what is '$word'? See ./install.sh --help" 2 ;;
        esac
    done
    [[ -z $chosen || $with_service == yes ]] || fail "$chosen and --no-service do not go together" 2
}

need_root() {
    [[ $dry_run == no && -z $root ]] || return 0
    ((EUID == 0)) || fail 'only root may do this: run it with sudo'
}

main() {
    umask 022
    parse "$@"
    places
    need_root
    trap at_exit EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    [[ $action == demo ]] || refuse_beside_package
    case $action in
        install) install_all ;;
        uninstall) uninstall_all ;;
        demo) demo ;;
    esac
}

# Read by a test, it only defines; run, it acts.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
