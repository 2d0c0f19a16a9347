"""Functions that the tests run in workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any


def note_and_sleep(path: str) -> None:
    """Starts a child in a session of its own, writes the ids of the worker and of the child to a file, and hangs."""
    child = subprocess.Popen(["setsid", "sleep", "1000"])
    note(path, os.getpid(), child.pid)
    time.sleep(1000)


def note(path: str, *numbers: int) -> None:
    with open(path + ".new", "w") as file:
        file.write(" ".join(map(str, numbers)))
    os.rename(path + ".new", path)


def with_finally(path: str) -> None:
    try:
        note(path + ".begun", os.getpid())
        time.sleep(1000)
    finally:
        note(path + ".finally", os.getpid())


def ignore_sigterm(path: str) -> None:
    """Ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(path, os.getpid())
    while True:
        time.sleep(1000)


def pid() -> int:
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def set_state(value: Any) -> None:
    sys.modules[__name__].__dict__["state"] = value


def get_state() -> Any:
    return sys.modules[__name__].__dict__.get("state")


def fail() -> None:
    raise RuntimeError("in the initializer")


def wait_and_put(event: Any, queue: Any, connection: Any) -> None:
    """Uses an event, a queue and a connection that a Process received as arguments."""
    event.wait()
    queue.put(os.getpid())
    connection.send(connection.recv() * 2)


def print_lines() -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)


def exit_with(code: int) -> None:
    sys.exit(code)
