"""Copies between file descriptors and the messages of a job."""

from __future__ import annotations

import fcntl
import os
import queue
import select
import socket
import threading
from collections.abc import Callable
from typing import Optional


def duplicate(fd: int) -> int:
    """Returns a copy of a descriptor, which programs that this process executes do not inherit."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def is_null(fd: int) -> bool:
    """Returns whether this is /dev/null."""
    return os.fstat(fd).st_rdev == os.stat(os.devnull).st_rdev


class Pump:
    """Writes to a copy of `fd`, in a thread of its own, since a pipe or a terminal may block."""

    def __init__(self, fd: int, written: Callable[[int], None]) -> None:
        """Calls `written` with the number of bytes of each piece that has been written or dropped."""
        self._fd = duplicate(fd)
        self._written = written
        self._pieces: queue.SimpleQueue[Optional[bytes]] = queue.SimpleQueue()
        self._running = False

    def write(self, data: bytes) -> None:
        """Queues the data. Does not block. If no process reads any more, the data is dropped."""
        if not self._running:
            self._running = True
            threading.Thread(target=self._run, name="pinfold-output", daemon=True).start()
        self._pieces.put(data)

    def close(self) -> None:
        """Closes the descriptor after the last write. Does not block."""
        if self._running:
            self._pieces.put(None)
        else:
            os.close(self._fd)

    def _run(self) -> None:
        broken = False
        for piece in iter(self._pieces.get, None):
            rest = memoryview(piece)
            try:
                while rest and not broken:
                    rest = rest[os.write(self._fd, rest) :]
            except OSError:
                broken = True
            self._written(len(piece))
        os.close(self._fd)


class Feeder:
    """Copies what can be read from a copy of `fd` to the standard input of a job, in a thread of its own."""

    WINDOW = 256 * 1024
    """How many bytes may wait until the job reads them."""

    def __init__(self, fd: int) -> None:
        self._fd = duplicate(fd)
        self._stop, self._stopped = socket.socketpair()
        self._room = threading.Condition()
        self._waiting = 0
        self._closed = False

    def start(self, write: Callable[[bytes], None], end: Callable[[], None]) -> None:
        """Calls `write` with each piece, and `end` after the last one."""
        threading.Thread(target=self._run, args=(write, end), name="pinfold-input", daemon=True).start()

    def written(self, count: int) -> None:
        """Call this when the job has read this many bytes. Does not block."""
        with self._room:
            self._waiting -= count
            self._room.notify()

    def close(self) -> None:
        """Stops the copy. The program that writes to `fd` then gets EPIPE. Does not block."""
        with self._room:
            self._closed = True
            self._room.notify()
            self._stop.close()

    def _run(self, write: Callable[[bytes], None], end: Callable[[], None]) -> None:
        poll = select.poll()
        for fd in (self._fd, self._stopped.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            ready = poll.poll()
            if any(fd == self._stopped.fileno() for fd, _ in ready):
                break
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:
                data = b""
            if not data:
                end()
                break
            with self._room:
                self._waiting += len(data)
            write(data)
            with self._room:
                self._room.wait_for(lambda: self._closed or self._waiting < self.WINDOW)
        os.close(self._fd)
        self._stopped.close()
