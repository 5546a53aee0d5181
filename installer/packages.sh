# shellcheck shell=bash
# What the distribution has to provide, by its name there. Read by install.sh.
# shellcheck disable=SC2154 # the lower-case globals are install.sh's

package_manager() {
    local like
    # shellcheck source=/dev/null
    like=$(. "$os_release" 2>/dev/null && echo " ${ID:-} ${ID_LIKE:-} ") || like=''
    case $like in
        *' debian '* | *' ubuntu '*) echo apt-get ;;
        *' fedora '* | *' rhel '* | *' centos '*) echo dnf ;;
        *' arch '*) echo pacman ;;
        *suse*) echo zypper ;;
        *) fail "this distribution is not known here: install $* yourself, then run this again" ;;
    esac
}

# What has the same name everywhere is not listed.
package_name() {
    case $1:$2 in
        dnf:iproute2) echo iproute ;;
        pacman:python3) echo python ;;
        # The module belongs to python there, which can do without the library.
        pacman:python3-sqlite3) echo sqlite ;;
        # python3-minimal and python3-base do without it.
        *:python3-sqlite3) echo python3 ;;
        pacman:python3-lxml) echo python-lxml ;;
        pacman:python3-libvirt) echo libvirt-python ;;
        zypper:python3-libvirt) echo python3-libvirt-python ;;
        *) echo "$2" ;;
    esac
}

has() {
    case $1 in
        python3) [[ -x $python ]] ;;
        python3-*) [[ -x $python ]] && "$python" -I -c "import ${1#python3-}" 2>/dev/null ;;
        nftables) command -v nft >/dev/null ;;
        iproute2) command -v ip >/dev/null ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

install_command() {
    case $1 in
        apt-get) echo 'env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends' ;;
        dnf) echo 'dnf install -q -y' ;;
        pacman) echo 'pacman -S --needed --noconfirm' ;;
        zypper) echo 'zypper --quiet --non-interactive install' ;;
    esac
}

need_packages() {
    local manager need name
    local -a missing=() names=() command
    for need in "$@"; do has "$need" || missing+=("$need"); done
    ((${#missing[@]})) || return 0
    manager=$(package_manager "${missing[@]}")
    for need in "${missing[@]}"; do
        name=$(package_name "$manager" "$need")
        [[ " ${names[*]} " == *" $name "* ]] || names+=("$name")
    done
    read -ra command < <(install_command "$manager")
    if [[ $manager == apt-get ]]; then act 'run: apt-get update -q' quietly apt-get update -q; fi
    act "run: ${command[*]} ${names[*]}" quietly "${command[@]}" "${names[@]}"
}

# A package manager's own words matter only when it fails.
quietly() {
    local said
    said=$("$@" 2>&1 </dev/null) || fail "'$*' failed:"$'\n'"$said"
}

need_python() {
    [[ -x $python || $dry_run == no ]] || return 0
    "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or newer is needed as $python, and here it is $("$python" -V 2>&1)"
}

# Two installations would take each other's hooks.
refuse_beside_package() {
    local state=''
    [[ -z $root ]] || return 0
    if command -v dpkg-query >/dev/null; then
        state=$(dpkg-query --show --showformat '${db:Status-Status}' virt-forward 2>/dev/null) || state=''
    fi
    [[ $state =~ ^(|not-installed|config-files)$ ]] ||
        fail "the package virt-forward is installed here: upgrade that, or remove it first (apt-get remove virt-forward)"
}
