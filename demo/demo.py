#!/usr/bin/python3 -I
"""The main job, shown in seconds, in network namespaces that end with this process.

    client 192.0.2.2 ---- enp1s0 192.0.2.1  host  virbr0 10.10.0.1 ---- 10.10.0.200 guest

The hooks are the real ones and run as libvirt runs them; only libvirt and the guest's
kernel are left out. A private mount namespace with its own /run holds everything that is
made: even if this process is killed, nothing of it outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
# On the private /run: the copy keeps compiled files out of somebody's checkout.
WORK = Path("/run/virt-forward-demo")
PAGE = "Hello from the guest web, 10.10.0.200 port 80."
URL_HOST, URL_PORT = "192.0.2.1", 8080
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What libvirt passes to a hook, and where this demo's state goes.
HOOK_ENV = {
    "LC_ALL": "C", "PATH": PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root",
    "VIRT_FORWARD_RUN_DIR": str(WORK / "state"), "VIRT_FORWARD_CONFIG": str(WORK / "no-config"),
}  # fmt: skip
CLONE_NEWNS = 0x00020000
IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"
WHOLE_DEMO_SECONDS = 60

ROOMS = """
ip netns add host
ip netns add guest
ip netns add client
ip -n host link set lo up
ip -n host link add enp1s0 type veth peer name eth0 netns client
ip -n host address add 192.0.2.1/24 dev enp1s0
ip -n host link set enp1s0 up
ip -n client address add 192.0.2.2/24 dev eth0
ip -n client link set eth0 up
ip -n host link add virbr0 address 52:54:00:9a:8a:d1 type bridge
ip -n host address add 10.10.0.1/24 dev virbr0
ip -n host link set virbr0 up
ip -n host link add vnet0 type veth peer name eth0 netns guest
ip -n host link set vnet0 master virbr0 up
ip -n guest link set eth0 address 52:54:00:a0:8f:2c up
ip -n guest address add 10.10.0.200/24 dev eth0
ip -n guest route add default via 10.10.0.1
"""

FETCH = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=float(sys.argv[3]))
try:
    connection.request("GET", "/")
    print(connection.getresponse().read().decode(), end="")
except OSError as error:
    sys.exit(str(error))
"""

SERVE = """
import http.server, os, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode())
    def log_message(self, *words): pass
server = http.server.HTTPServer(("10.10.0.200", 80), Page)
os.write(1, b"listening\\n")
server.serve_forever()
"""


class DemoError(Exception):
    """Something was not as it should be."""


def colour(code: int, text: str) -> str:
    """Colour a text where somebody looks at it."""
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


def say(text: str) -> None:
    """Tell the story, line by line as it happens."""
    print(text, flush=True)


def step(text: str) -> None:
    """Begin a part of the story."""
    say(f"\n{colour(1, text)}")


def check(what: str, true: bool, otherwise: str = "") -> None:
    """Tell what is true; what is not ends the demo."""
    if not true:
        raise DemoError(what + (f": {otherwise}" if otherwise else ""))
    say(f"  {colour(32, 'ok')}  {what}")


def run(argv: Sequence[str], stdin: str = "", timeout: float = 10) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its status; never longer than the timeout."""
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise DemoError(f"'{' '.join(argv)}' was not done after {timeout:g} s") from None
    except OSError as error:
        raise DemoError(f"'{argv[0]}' cannot be run: {error.strerror}") from None


def must(argv: Sequence[str], stdin: str = "") -> str:
    """Run a command that has to succeed, and return what it printed."""
    done = run(argv, stdin)
    if done.returncode:
        raise DemoError(f"'{' '.join(argv)}' failed: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout


def inside(namespace: str, *argv: str) -> list[str]:
    """Return the command that runs in a network namespace."""
    return ["ip", "netns", "exec", namespace, *argv]


def private_run() -> None:
    """Leave the host's mounts: from here on /run, and the namespaces named in it, are ours alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise DemoError(f"a mount namespace cannot be made: {os.strerror(ctypes.get_errno())}")
    # Without -n it leaves notes of its own in /run/mount.
    must(["mount", "-n", "--make-rprivate", "/"])
    must(["mount", "-n", "-t", "tmpfs", "-o", "mode=0755", "virt-forward-demo", "/run"])
    WORK.mkdir(mode=0o700)


def build_rooms() -> None:
    """Make host, guest and client, and load the ruleset that somebody wrote by hand."""
    for line in ROOMS.strip().splitlines():
        must(line.split())
    must(inside("host", "tee", IP_FORWARD), "1\n")
    must(inside("host", "nft", "-f", str(HERE / "nftables.conf")))


def copy_hooks() -> None:
    """Copy the hooks and their package, side by side as in the checkout."""
    for part in ("hooks", "lib"):
        shutil.copytree(CHECKOUT / part, WORK / part, ignore=shutil.ignore_patterns("__pycache__"))


@contextlib.contextmanager
def web_server() -> Iterator[None]:
    """Serve the page in the guest; the kernel ends the server if we cannot."""
    argv = inside("guest", "setpriv", "--pdeathsig", "KILL", sys.executable, "-I", "-c", SERVE, PAGE)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout and server.stderr
            if server.stdout.readline() != "listening\n":
                raise DemoError(f"the guest's web server did not start: {server.stderr.read().strip()}")
            yield
        finally:
            server.kill()


def fetch(timeout: float) -> tuple[bool, str]:
    """Ask for the page as the client outside: the page, or why there is none."""
    argv = inside("client", sys.executable, "-I", "-c", FETCH, URL_HOST, str(URL_PORT), str(timeout))
    done = run(argv, timeout=timeout + 5)
    return (not done.returncode, (done.stderr if done.returncode else done.stdout).strip())


def hook(operation: str, sub: str, extra: str = "-") -> None:
    """Run hooks/qemu as libvirt does: its arguments, its environment, the domain on stdin."""
    xml = (HERE / "web.xml").read_text()
    if operation != "started":  # the tap device has a name only while the guest runs
        xml = xml.replace("      <target dev='vnet0'/>\n", "")
    argv = ["env", "-i", *(f"{key}={value}" for key, value in HOOK_ENV.items())]
    before = time.monotonic()
    done = run(inside("host", *argv, str(WORK / "hooks/qemu"), "web", operation, sub, extra), xml, timeout=20)
    took = f"{1000 * (time.monotonic() - before):.0f} ms"
    check(f"hooks/qemu web {operation} {sub} {extra}   ({took})", done.returncode == 0, done.stderr.strip())


def ruleset() -> str:
    """List the whole ruleset of the host, without counters."""
    return must(inside("host", "nft", "-s", "list", "ruleset"))


def closed(when: str) -> None:
    """Check that nobody outside gets the page."""
    there, answer = fetch(timeout=1)
    check(f"{when}: http://{URL_HOST}:{URL_PORT}/ is closed ({answer})", not there, "the page came")


def opened() -> None:
    """Check that the client gets the guest's page, and show it."""
    there, answer = fetch(timeout=5)
    check(f"the client fetches http://{URL_HOST}:{URL_PORT}/", there, answer)
    check(f"and reads: {colour(36, answer)}", answer == PAGE, f"it should be: {PAGE}")


def show_table() -> None:
    """Show what of our table speaks of this guest."""
    say("\n  # nft list table inet virt-forward     (what is there for this guest)")
    for line in guest_lines(must(inside("host", "nft", "list", "table", "inet", "virt-forward"))):
        say(f"  {line}")


def guest_lines(table: str) -> list[str]:
    """Leave out the parts of a listed table that are there without any guest."""
    return [line for block in blocks(table) if "web" in block for line in block.splitlines()]


def blocks(table: str) -> list[str]:
    """Split a listed table into its sets, maps and chains."""
    body = table.split("\n", 1)[1].rsplit("}", 1)[0]
    return [block.strip("\n") for block in body.split("\n\n")]


def story() -> None:
    """Show everything, in the order in which it happens on a real host."""
    step("A host: bridge virbr0, a hand-written nftables.conf (policy drop), a guest 'web', a client outside")
    build_rooms()
    with web_server():
        before = ruleset()
        closed("before")
        step('virsh start web     (in its metadata: <portForward proto="tcp"><range start="8080" to="80"/>)')
        hook("prepare", "begin")
        hook("start", "begin")
        hook("started", "begin")
        opened()
        show_table()
        step("virsh shutdown web")
        hook("stopped", "end")
        hook("release", "end", "shutdown")
        closed("after")
        check("the ruleset is byte for byte what it was before", ruleset() == before, ruleset())


def on_signal(number: int, _frame: object) -> NoReturn:
    """End as if by ourselves, so that the web server is ended too."""
    if number == signal.SIGALRM:
        raise DemoError(f"it was not done after {WHOLE_DEMO_SECONDS} s")
    sys.exit(128 + number)


def tell(show: Callable[[], None]) -> int:
    """Tell the story and how it ended."""
    began = time.monotonic()
    try:
        private_run()
        copy_hooks()
        show()
    except DemoError as error:
        print(f"\n  {colour(31, 'FAILED')}  {error}", file=sys.stderr)
        return 1
    step(f"All as it should be, in {time.monotonic() - began:.1f} s. The namespaces end here.")
    say("Not a rule, file or interface of this host was touched.")
    return 0


def main() -> int:
    """Show the demo; 0 only if everything was as it should be."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, on_signal)
    signal.alarm(WHOLE_DEMO_SECONDS)
    return tell(story)


if __name__ == "__main__":
    sys.exit(main())
