"""Functions that the tests share: they find processes, and wait for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

BOUND = 60.0
"""The number of seconds after which a test that hangs fails."""


def alive(pid: int) -> bool:
    """Returns whether the process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(") ", 1)[1][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], object], what: str) -> None:
    """Waits until the condition is true."""
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, f"not within {BOUND} s: {what}"
        time.sleep(0.01)


def pids(path: object) -> list[int]:
    """Waits for the file, which appears by a rename, and returns the process ids in it."""
    until(lambda: os.path.exists(str(path)), f"{path} exists")
    with open(str(path)) as file:
        return [int(pid) for pid in file.read().split()]


def all_gone(processes: Iterable[int]) -> bool:
    return not any(alive(pid) for pid in processes)


def running(command: list[str]) -> list[int]:
    """Returns the processes with this command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")[:-1]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if words == [word.encode() for word in command]:
                found.append(int(name))
    return found


TREE = 'setsid sleep 1000 & setsid sh -c "sleep 1000 & wait" & echo "$$ $!" > {0}.new && mv {0}.new {0}; wait'
"""A shell command with children in sessions of their own. It writes two process ids into a file."""
