"""The host's side of a worker: starts the Python process of a job, and connects to it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from multiprocessing import context, process, reduction, resource_tracker, spawn
from typing import Any, Optional

from . import _bootstrap
from ._bootstrap import Channel
from ._popen import Streams
from ._serve import Job, serve


class ReceivedFd:
    """A descriptor that the host sends with the first message. Its pickled form is its position in that message."""

    def __init__(self, index: int) -> None:
        self._index = index

    def detach(self) -> int:
        """Returns the descriptor, in the worker."""
        fds: list[int] = getattr(process.current_process(), "_pinfold_fds")
        return fds[self._index]


class _Spawning:
    """Collects descriptors. multiprocessing calls this object while connections, locks and queues are pickled."""

    DupFd = ReceivedFd

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(fd)
        return len(self.fds) - 1


class WorkerFailed(Exception):
    """The worker ended before it was connected."""


class Worker(Streams):
    """A worker: its job, and the connection to it."""

    channel: Channel

    def __init__(self, mode: str, name: str, first: Any, grace: Optional[float] = None) -> None:
        """Starts the worker. Pickles `first`, with the connections and locks in it, as the worker's first object.

        Raises the errors of pickling before it starts anything, and PinfoldError.
        """
        super().__init__(-1, -1, -1)
        try:
            self._messages, self._fds = self._pickle(mode, name, first)
        except BaseException:
            self.ended()
            raise
        address, self._token = secrets.token_hex(16), secrets.token_hex(32)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # An abstract name (unix(7)) leaves nothing in the file system. The token proves that the peer is the worker.
        self._listener.bind(b"\0" + bytes.fromhex(address))
        self._listener.listen()
        spec: dict[str, Any] = {
            "command": [os.fsdecode(spawn.get_executable()), *_interpreter_flags(), _bootstrap.__file__],
            "name": name,
            "cwd": os.getcwd(),
            "env": dict(os.environ),
            "stdin": f"{address} {self._token}\n",
        }
        if grace is not None:
            spec["grace"] = grace
        self.job: Job = self.submit(serve(), spec)

    @staticmethod
    def _pickle(mode: str, name: str, first: Any) -> tuple[list[bytes], list[int]]:
        spawning = _Spawning()
        preparation = spawn.get_preparation_data(name)
        authkey = bytes(preparation.pop("authkey"))
        context.set_spawning_popen(spawning)  # type: ignore[arg-type]
        try:
            # The worker prepares its modules before it loads the rest.
            parts: list[Any] = [(mode, authkey, preparation), first]
            messages = [bytes(reduction.ForkingPickler.dumps(part)) for part in parts]
        finally:
            context.set_spawning_popen(None)
        tracker = resource_tracker.getfd()
        assert tracker is not None
        return messages, [tracker, *spawning.fds]

    def connect(self) -> None:
        """Waits for the worker's connection, and sends the first object. Raises WorkerFailed if the worker ends."""
        token = bytes.fromhex(self._token)
        try:
            while True:
                connection, _ = self._listener.accept()
                if secrets.compare_digest(connection.recv(len(token), socket.MSG_WAITALL), token):
                    break
                connection.close()
            self.channel = Channel(connection)
            self.channel.send_fds(self._fds)
            for message in self._messages:
                self.channel.send(message)
        except OSError:
            self.job.ended.wait()
            raise WorkerFailed from None
        finally:
            self._listener.close()
            self._messages.clear()

    def ended(self) -> None:
        super().ended()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # This ends accept().
        except (AttributeError, OSError):
            pass


def _interpreter_flags() -> list[str]:
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags
