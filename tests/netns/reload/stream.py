#!/usr/bin/python3 -I
"""Connections, one after the other and several at a time, counted: stream.py HOST PORT PATH-TO-STOP.

Prints how many were made, how many of them were refused or had no answer in time, and the longest time
in seconds in which none was begun that succeeded. A SYN that is lost is sent again after a second only.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time

AT_ONCE, AT_MOST = 8, 800
"""As many as are answered are begun; while nobody answers, one each PAUSE, that the gap is seen to end."""

PAUSE = 0.001
PATIENCE = 0.4
# A close by RST leaves no TIME_WAIT behind: there are more connections here than ports.
LINGER = struct.pack("ii", 1, 0)


class Stream:
    """Keeps some connections under way until it is told to stop."""

    def __init__(self, host: str, port: int) -> None:
        self.to = (host, port)
        self.poll = select.epoll()
        self.under_way: dict[int, tuple[socket.socket, float]] = {}
        self.made = self.refused = self.unanswered = 0
        self.good = self.begun = time.monotonic()
        self.gap = 0.0

    def open(self) -> None:
        made = socket.socket()
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        self.begun = time.monotonic()
        made.connect_ex(self.to)
        self.under_way[made.fileno()] = (made, self.begun)
        self.poll.register(made, select.EPOLLOUT)

    def close(self, fd: int) -> None:
        made, _ = self.under_way.pop(fd)
        self.poll.unregister(fd)
        made.close()
        self.made += 1

    def answered(self, fd: int) -> None:
        if self.under_way[fd][0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.refused += 1
        else:
            begun = self.under_way[fd][1]
            self.gap, self.good = max(self.gap, begun - self.good), max(self.good, begun)

    def due(self) -> bool:
        waiting = len(self.under_way)
        return waiting < AT_ONCE or (waiting < AT_MOST and time.monotonic() >= self.begun + PAUSE)

    def turn(self) -> None:
        while self.due():
            self.open()
        for fd, _ in self.poll.poll(PAUSE):
            self.answered(fd)
            self.close(fd)
        late = time.monotonic() - PATIENCE
        for fd in [fd for fd, (_, since) in self.under_way.items() if since < late]:
            self.unanswered += 1
            self.close(fd)


def serve(port: int) -> None:
    """Accept and close, as fast as may be."""
    with socket.create_server(("", port), backlog=4096) as server:
        while True:
            server.accept()[0].close()


def main() -> None:
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    stream = Stream(sys.argv[1], int(sys.argv[2]))
    while not os.path.exists(sys.argv[3]):
        stream.turn()
    names = ("made", "refused", "unanswered")
    counts = {name: getattr(stream, name) for name in names}
    print(json.dumps({**counts, "gap": round(stream.gap, 4)}), flush=True)


if __name__ == "__main__":
    main()
