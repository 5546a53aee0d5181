"""As root on a host: what a person runs, on this machine seen through private mounts and no network."""

from __future__ import annotations

import pytest

from system.install.support import private_host

pytestmark = pytest.mark.root

# A daemon that counts its SIGHUPs; the kernel names it after the script, as install.sh wants to see it.
DAEMON = """
mkdir /run/test
cat >/run/test/libvirtd <<'EOF'
#!/bin/bash
trap 'echo reloaded >>/run/test/reloads' HUP
echo $$ >/run/libvirtd.pid
for ((i = 0; i < 600; i++)); do read -rt 0.1 <> <(:) || :; done
EOF
chmod +x /run/test/libvirtd
/run/test/libvirtd & daemon=$!
trap 'kill $daemon' EXIT
until [[ -s /run/libvirtd.pid ]]; do sleep 0.05; done
# A reload that should not be would be counted by the next look.
reloads() {
    for ((i = 0; i < 50; i++)); do
        [[ $(cat /run/test/reloads 2>/dev/null | wc -l) -lt $1 ]] || break
        sleep 0.1
    done
    sleep 0.3
    wc -l </run/test/reloads
}
"""
LISTING = "listing() { find /etc /usr/local /run -path /run/test -prune -o -printf '%p %m %l\\n' | sort; }\n"


def test_install_and_uninstall_leave_the_host_as_it_was() -> None:
    out = private_host(
        DAEMON
        + LISTING
        + """
    listing >/run/test/before
    "$INSTALL" >/run/test/said
    stat -c %a /etc/libvirt/hooks/qemu
    reloads 1
    "$INSTALL" >/dev/null
    reloads 2
    mkdir -p /run/virt-forward && touch /run/virt-forward/ruleset.nft
    nft add table inet virt-forward
    nft add table inet theirs
    "$INSTALL" --uninstall >>/run/test/said
    reloads 3
    nft list tables
    listing | diff /run/test/before -
    """
    )
    assert out.splitlines() == ["755", "1", "2", "3", "table inet theirs"]


def test_dry_run_sends_nothing_and_writes_nothing() -> None:
    out = private_host(
        DAEMON
        + LISTING
        + """
    touch /run/test/reloads
    listing >/run/test/before
    "$INSTALL" --dry-run | grep -v '^would ' || :
    "$INSTALL" --dry-run | grep -c SIGHUP
    reloads 0
    listing | diff /run/test/before -
    """
    )
    assert out.splitlines() == ["1", "0"]


def test_stale_pid_file_hits_nobody() -> None:
    out = private_host('sleep 60 & echo $! >/run/libvirtd.pid; "$INSTALL"; kill $! && echo alive')
    assert "SIGHUP" not in out
    assert "no libvirt daemon runs" in out
    assert out.endswith("alive\n")


def test_no_libvirt_is_one_line_and_no_failure() -> None:
    out = private_host('"$INSTALL"')
    notes = [line for line in out.splitlines() if line.startswith("note: not done")]
    assert len(notes) == 1


def test_another_prefix_gets_a_command_that_runs() -> None:
    out = private_host('PREFIX=/usr/local/vf "$INSTALL" >/dev/null; /usr/local/vf/bin/virt-forward --help')
    assert "sync" in out


def test_under_systemd_only_active_daemons_are_reloaded() -> None:
    out = private_host(
        """
mkdir -p /run/systemd/system /usr/local/bin
cat >/usr/local/bin/systemctl <<'EOF'
#!/bin/sh
case $* in
    "-q is-active libvirtd.service") exit 3 ;;
    "show "*) echo active ;;
    "-q is-active "* | "-q is-enabled "*) ;;
    *) echo "$*" >>/run/calls ;;
esac
EOF
chmod +x /usr/local/bin/systemctl
for action in "" --no-service --uninstall; do
    "$INSTALL" $action >/dev/null
    grep -vx -e --version /run/calls | sort
    rm /run/calls
done
"""
    )
    calls = ["daemon-reload", "reload virtnetworkd.service", "reload virtqemud.service"]
    enabled = ["-q enable virt-forward", *calls, "restart virt-forward"]
    assert out.splitlines() == [*enabled, *calls, "try-restart virt-forward", "-q stop virt-forward", *calls]


# As systemd has it: without its file a unit cannot be disabled, and one that is not loaded cannot be stopped.
SYSTEMCTL = """
mkdir -p /run/systemd/system /usr/local/bin
cat >/usr/local/bin/systemctl <<'EOF'
#!/bin/sh
case $* in
    "show "*) cat /run/state ;;
    *disable*) [ -e /etc/systemd/system/virt-forward.service ] ;;
    "-q stop virt-forward") grep -q activ /run/state && echo inactive >/run/state || exit 5 ;;
    "-q reset-failed virt-forward") echo inactive >/run/state ;;
    "-q is-active "* | "-q is-enabled "*) exit 3 ;;
esac
EOF
chmod +x /usr/local/bin/systemctl
"""


@pytest.mark.parametrize("state", ["active", "activating", "inactive", "failed"])
def test_uninstall_without_the_unit_file_and_a_second_time(state: str) -> None:
    out = private_host(
        SYSTEMCTL
        + f"""
find /etc /usr/local | sort >/run/before
echo inactive >/run/state
"$INSTALL" >/run/said 2>&1
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -s /etc/systemd/system/virt-forward.service /etc/systemd/system/multi-user.target.wants/
rm /etc/systemd/system/virt-forward.service
echo {state} >/run/state
for _ in 1 2; do "$INSTALL" --uninstall >/run/said; done
cat /run/state
find /etc /usr/local | sort | diff /run/before -
"""
    )
    assert out == "inactive\n"


@pytest.mark.parametrize("broken", ["systemctl", "nft", "libvirtd", "iptables", "timeout"])
def test_uninstall_gets_to_its_end_whatever_fails_beside_it(broken: str) -> None:
    out = private_host(
        f"""
mkdir -p /run/test/bin
find /etc /usr/local | sort >/run/test/before
"$INSTALL" >/run/test/said 2>&1
mkdir -p /run/systemd/system
printf '#!/bin/sh\\nexit 1\\n' >/run/test/bin/{broken}
chmod +x /run/test/bin/{broken}
for _ in 1 2; do PATH=/run/test/bin:$PATH "$INSTALL" --uninstall >/run/test/said; done
find /etc /usr/local | sort | diff /run/test/before -
test ! -e /run/virt-forward
"""
    )
    assert out == ""


LIBVIRTS_RULES = """
nft -f - <<'EOF'
table ip libvirt_network {
    chain guest_input {
        oifname "virbr0" accept comment "virt-forward"
        oifname "virbr0" reject
        oifname "virbr1" accept comment "virt-forward web"
        oifname "virbr2" accept comment "theirs"
    }
}
EOF
for program in iptables ip6tables; do
    $program -N LIBVIRT_FWI
    for comment in virt-forward "virt-forward web" "not virt-forward"; do
        $program -A LIBVIRT_FWI -o virbr0 -m comment --comment "$comment" -j ACCEPT
    done
done
"""


def test_uninstall_takes_our_rules_out_of_libvirts_chains() -> None:
    out = private_host(
        LIBVIRTS_RULES
        + """
"$INSTALL" --uninstall >/dev/null
nft list table ip libvirt_network | grep -E 'virt|theirs|reject'
iptables -S LIBVIRT_FWI
ip6tables -S LIBVIRT_FWI
"""
    )
    kept = '-A LIBVIRT_FWI -o virbr0 -m comment --comment "not virt-forward" -j ACCEPT'
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "table ip libvirt_network {",
        'oifname "virbr0" reject',
        'oifname "virbr2" accept comment "theirs"',
        *["-N LIBVIRT_FWI", kept] * 2,
    ]


def test_uninstall_takes_back_what_is_recorded_where_the_state_is_damaged() -> None:
    """The records of a version before this one count as well."""
    out = private_host(
        """
ip link add virbr0 type bridge
ip link add virbr1 type bridge
for bridge in virbr0 virbr1; do echo 1 >/proc/sys/net/ipv4/conf/$bridge/route_localnet; done
mkdir -p /run/virt-forward/guests
echo damaged >/run/virt-forward/unfinished
echo damaged >/run/virt-forward/claims
echo damaged >/run/virt-forward/guests/9b8b5e27-6d3c-4f0e-9a3c-3b1f8f2a7c10.json
echo virbr1 >/run/virt-forward/route_localnet
"$INSTALL" --uninstall >/dev/null
cat /proc/sys/net/ipv4/conf/virbr{0,1}/route_localnet
test ! -e /run/virt-forward
"""
    )
    assert out.split() == ["1", "0"], "virbr0's is somebody else's"


def test_hook_that_runs_during_an_upgrade_ends_with_the_package_it_began_with() -> None:
    """The old package has a module that the new one has not, and its hook waits before it imports that."""
    out = private_host(
        """
mkdir /run/test && cp -R "${INSTALL%/install.sh}"/{install.sh,installer,hooks,lib} /run/test
cd /run/test
mkfifo begun go
echo "open('/run/test/told', 'w').write('imported\\n')" >lib/virt_forward/hooks/of_yesterday.py
cat >>lib/virt_forward/hooks/dispatch.py <<'EOF'
open("/run/test/begun", "w").close()
open("/run/test/go").read()
from virt_forward.hooks import of_yesterday
EOF
./install.sh >/dev/null
echo '<domain>urn:virt-forward:1</domain>' | /etc/libvirt/hooks/qemu web reconnect begin - & hook=$!
read -r <begun || :
"$INSTALL" >said & upgrade=$!
old=$(readlink /usr/local/lib/virt-forward/virt_forward)
until grep -q 'which was replaced' said; do sleep 0.05; done
[[ $(readlink /usr/local/lib/virt-forward/virt_forward) != "$old" ]]
sleep 0.5
ls -d /usr/local/lib/virt-forward/package-* | wc -l
echo '<domain>urn:virt-forward:1</domain>' | /etc/libvirt/hooks/qemu web reconnect begin -
echo >go
wait $hook
cat told
wait $upgrade
echo "the upgrade: $?"
ls -d /usr/local/lib/virt-forward/package-* | wc -l
"""
    )
    assert out.splitlines() == ["2", "imported", "the upgrade: 0", "1"]
