"""Messages of netlink(7), and what the kernel answers to a request for one object, or for all of a kind."""

from __future__ import annotations

import errno
import os
import struct
import sys
import time

# The module socket takes 5 ms to import, and builds on this one.
from _socket import AF_NETLINK, MSG_TRUNC, SOCK_CLOEXEC, SOCK_RAW, socket
from collections.abc import Iterator, Sequence
from contextlib import closing

from virt_forward.host import process
from virt_forward.namedtuple import NamedTuple

NETLINK_NETFILTER = 12
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_DUMP, NLM_F_DUMP_INTR = 0x1, 0x300, 0x10
NLA_TYPE_MASK = 0x3FFF
"""linux/netlink.h and, for SOL_NETLINK, linux/socket.h."""

SECONDS = 5.0
"""How long a dump may take."""

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 16
"""The kernel makes no message of a dump larger than 32 KiB (netlink_dump in net/netlink/af_netlink.c)."""

_AT_ONCE = 64
"""How many requests are sent together: the kernel refuses more than net.core.wmem_default bytes, 208 KiB."""


class Message(NamedTuple):
    """A message; ``port`` is that of the socket which caused it, for a program its process number."""

    kind: int
    flags: int
    port: int
    payload: bytes


def messages(data: bytes) -> Iterator[Message]:
    """Yield the messages in a buffer. Raises OSError at one that is not whole."""
    start = 0
    while start < len(data):
        # Checked by its length before it is read: the buffer may end within a header.
        length = int.from_bytes(data[start : start + 4], sys.byteorder)
        if not _HEADER.size <= length <= len(data) - start:
            raise _failure(errno.EBADMSG)
        _, kind, flags, _, port = _HEADER.unpack_from(data, start)
        yield Message(kind, flags, port, data[start + _HEADER.size : start + length])
        start += _aligned(length)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and payload of each attribute in a buffer, up to one that is not whole."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & NLA_TYPE_MASK, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def attribute(kind: int, *payload: bytes) -> bytes:
    """Return an attribute as a message has it."""
    data = b"".join(payload)
    length = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return length + 3 & ~3


def dump(protocol: int, kind: int, request: bytes) -> list[bytes]:
    """Return the payloads of the kernel's answers to a request for all objects of a kind.

    The request is repeated if objects have changed meanwhile. Raises OSError where the kernel refuses it,
    or has not answered within SECONDS or what is left of this process's time.
    """
    until = time.monotonic() + process.left(SECONDS)
    found = None
    while found is None:
        with closing(_open(protocol)) as kernel:
            kernel.send(_request(kind, NLM_F_REQUEST | NLM_F_DUMP, request))
            found = _receive(kernel, until)
    return found


def get(protocol: int, kind: int, request: bytes) -> bytes:
    """Return the payload of the kernel's answer to a request for one object.

    Raises OSError with what the kernel says where there is none, or where it has not answered in time.
    """
    with closing(_open(protocol)) as kernel:
        kernel.settimeout(process.left(SECONDS))
        kernel.send(_request(kind, NLM_F_REQUEST, request))
        answer = next(messages(kernel.recv(_BUFFER)))
    if answer.kind == NLMSG_ERROR:
        raise _failure(_error(answer))
    return answer.payload


def _open(protocol: int) -> socket:
    return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)


def _receive(kernel: socket, until: float) -> list[bytes] | None:
    """Return an answer; None if it may be inconsistent."""
    found: list[bytes] = []
    changed = False
    while True:
        kernel.settimeout(_left(until))
        data, _, flags, _ = kernel.recvmsg(_BUFFER)
        if flags & MSG_TRUNC:
            raise _failure(errno.EMSGSIZE)
        for message in messages(data):
            changed = changed or bool(message.flags & NLM_F_DUMP_INTR)
            if message.kind in (NLMSG_ERROR, NLMSG_DONE):
                _check(message)
                return None if changed else found
            found.append(message.payload)


def _check(last: Message) -> None:
    """Raise OSError where a dump has failed. Its last message has a negative error number, or 0."""
    number = _error(last)
    if last.kind == NLMSG_ERROR or number:
        raise _failure(number)


def _error(message: Message) -> int:
    return -int.from_bytes(message.payload[:4], sys.byteorder, signed=True)


def send(protocol: int, kind: int, requests: Sequence[bytes]) -> set[int]:
    """Send requests that are answered only where they fail, and return the numbers of these errors.

    The kernel has done all of them when this returns. Raises OSError where they cannot be sent, or not
    within SECONDS or what is left of this process's time.
    """
    until = time.monotonic() + process.left(SECONDS)
    errors: set[int] = set()
    with closing(_open(protocol)) as kernel:
        for start in range(0, len(requests), _AT_ONCE):
            kernel.settimeout(_left(until))
            some = requests[start : start + _AT_ONCE]
            kernel.send(b"".join(_request(kind, NLM_F_REQUEST, request) for request in some))
            errors |= _errors(kernel)
    return errors


def _request(kind: int, flags: int, payload: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, 1, 0) + payload


def _errors(kernel: socket) -> set[int]:
    """Return the numbers of the errors that are waiting to be read."""
    kernel.setblocking(False)
    found: set[int] = set()
    while True:
        try:
            answer = kernel.recv(_BUFFER)
        except BlockingIOError:
            return found
        found |= {_error(message) for message in messages(answer) if message.kind == NLMSG_ERROR}


def _left(until: float) -> float:
    """Return the seconds until a time on the monotonic clock. Raises TimeoutError where there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise _failure(errno.ETIMEDOUT)
    return left


def _failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))
