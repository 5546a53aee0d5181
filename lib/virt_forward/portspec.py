"""Forwards as text, in the syntax of Docker and Podman: ``[address:]port[:guestport][/proto]``."""

from virt_forward.model import Forward


def host_part(forward: Forward) -> str:
    """Return the host's side of a forward, as ``tcp/8080`` or ``tcp/203.0.113.7:8080``."""
    ports = forward.span
    if forward.address is None:
        return f"{forward.proto}/{ports}"
    shown = f"[{forward.address}]" if forward.address.version == 6 else str(forward.address)
    return f"{forward.proto}/{shown}:{ports}"


def render(forward: Forward) -> str:
    """Return the SPEC of a forward, as ``8080:80/tcp``."""
    _, _, host = host_part(forward).partition("/")
    guest = f":{forward.guest_span}" if forward.shifted else ""
    return f"{host}{guest}/{forward.proto}"


def qualifiers(forward: Forward) -> str:
    """Return ``on enp1s0 from 192.168.1.0/24``, or an empty string."""
    words = [f"on {forward.dev}"] if forward.dev else []
    words += [f"from {forward.source}"] if forward.source else []
    return " ".join(words)


def described(forward: Forward) -> str:
    """Return the SPEC of a forward with its qualifiers, as ``8080:80/tcp on enp1s0``."""
    return " ".join(filter(None, (render(forward), qualifiers(forward))))


def options(forward: Forward) -> str:
    """Return what ``add`` needs beside the SPEC, as ``--dev enp1s0 --source 192.168.1.0/24``, or nothing."""
    given = {"--dev": forward.dev, "--source": forward.source, "--mac": forward.mac}
    return " ".join(f"{name} {value}" for name, value in given.items() if value)
