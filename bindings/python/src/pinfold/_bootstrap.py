"""The program of a worker: the main process of a job, which exchanges messages with the host over a socket.

The host executes this file by its path. So this file imports nothing of the package before it has the host's
`sys.path`. The parts of multiprocessing that it uses have no public name; they are those of CPython 3.9 to 3.13
(Lib/multiprocessing/spawn.py).
"""

from __future__ import annotations

import array
import atexit
import os
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

_HEADER = struct.Struct("!Q")
_MAX_FDS = 253
"""The maximum number of descriptors in one message (SCM_MAX_FD, unix(7))."""


class Channel:
    """Messages of bytes over a stream socket. At any time, one thread may send and one may receive."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._rest = b""

    def send(self, data: bytes) -> None:
        """Sends a message. Raises OSError if the other side is gone."""
        if len(data) < 1 << 16:
            self.socket.sendall(_HEADER.pack(len(data)) + data)
        else:
            self.socket.sendall(_HEADER.pack(len(data)))
            self.socket.sendall(data)

    def receive(self) -> bytes:
        """Receives a message. Raises EOFError or OSError if the other side is gone, and TimeoutError."""
        while len(self._rest) < _HEADER.size:
            self._rest += self._some(1 << 16)
        (length,) = _HEADER.unpack_from(self._rest)
        end = _HEADER.size + length
        if len(self._rest) >= end:
            data, self._rest = self._rest[_HEADER.size : end], self._rest[end:]
            return data
        pieces, missing = [self._rest[_HEADER.size :]], end - len(self._rest)
        self._rest = b""
        while missing:
            pieces.append(self._some(min(missing, 1 << 20)))
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def _some(self, most: int) -> bytes:
        data = self.socket.recv(most)
        if not data:
            raise EOFError("the other side has closed the connection")
        return data

    def send_fds(self, fds: list[int]) -> None:
        """Sends descriptors, at least one."""
        if len(fds) > _MAX_FDS:
            raise ValueError(f"{len(fds)} descriptors are too many for one process: at most {_MAX_FDS - 1}")
        self.socket.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])

    def receive_fds(self) -> list[int]:
        """Receives descriptors, before any message."""
        fds = array.array("i")
        size = socket.CMSG_SPACE(_MAX_FDS * fds.itemsize)
        data, ancillary, _, _ = self.socket.recvmsg(1, size, socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise EOFError("the host has closed the connection")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        return list(fds)


class Terminated(SystemExit):
    """Raised in the main thread when SIGTERM arrives, so that `finally` blocks run."""


_terminated = False


def _on_sigterm(number: int, _frame: Any) -> None:
    global _terminated
    if not _terminated:
        _terminated = True
        raise Terminated(128 + number)


def _end_by_sigterm() -> None:
    """Ends the process by SIGTERM if SIGTERM has ended its work. Runs after all other functions of atexit."""
    if _terminated:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def _connect() -> Channel:
    address, token = sys.stdin.readline().split()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(b"\0" + bytes.fromhex(address))
    sock.sendall(bytes.fromhex(token))
    return Channel(sock)


def main() -> NoReturn:
    """Connects to the host, and does what its first message says: runs a process, or calls of an executor."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path != here]
    atexit.register(_end_by_sigterm)
    signal.signal(signal.SIGTERM, _on_sigterm)
    channel = _connect()
    import pickle
    from multiprocessing import process, resource_tracker, spawn

    current: Any = process.current_process()
    tracker, *current._pinfold_fds = channel.receive_fds()
    setattr(resource_tracker._resource_tracker, "_fd", tracker)
    mode, authkey, preparation = pickle.loads(channel.receive())
    current.authkey = authkey
    current._inheriting = True
    try:
        spawn.prepare(preparation)
        first = pickle.loads(channel.receive())
    finally:
        del current._inheriting
    code = first._bootstrap(channel.socket.fileno()) if mode == "process" else _serve_calls(channel, *first)
    if not _terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # No work is left that SIGTERM could end.
    sys.exit(code)


def _serve_calls(channel: Channel, initializer: Any, initargs: Any) -> int:
    """Runs calls until the host closes the connection."""
    import pickle
    from concurrent.futures import _base
    from concurrent.futures import process as futures_process
    from multiprocessing.reduction import ForkingPickler

    with_traceback: Any = futures_process._ExceptionWithTraceback
    if initializer is not None:
        try:
            initializer(*initargs)
        except Terminated:
            raise
        except BaseException:
            _base.LOGGER.critical("Exception in initializer:", exc_info=True)
            return 1
    channel.send(b"")  # Ready for calls.
    while True:
        try:
            call = channel.receive()
        except (EOFError, OSError):
            return 0
        fn, args, kwargs = pickle.loads(call)
        del call
        answer: Any
        try:
            answer = (True, fn(*args, **kwargs))
        except Terminated:
            raise
        except BaseException as error:
            answer = (False, with_traceback(error, error.__traceback__))
        data = _dumps(ForkingPickler, with_traceback, answer)
        del fn, args, kwargs, answer
        channel.send(data)
        del data


def _dumps(pickler: Any, with_traceback: Any, answer: Any) -> Any:
    try:
        return pickler.dumps(answer)
    except Terminated:
        raise
    except BaseException as error:
        return pickler.dumps((False, with_traceback(error, error.__traceback__)))


if __name__ == "__main__":
    main()
