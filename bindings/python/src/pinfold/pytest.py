"""A plugin for pytest: reports and ends the processes that each test leaves.

pytest loads it when this package is installed. `--pinfold-leftovers=warn` (or the setting `pinfold_leftovers`) ends the
processes that a test has started and that still run after its teardown, and warns. `error` ends them too, and the test
then has an error. `off`, the default, does nothing. Processes that a fixture of a wider scope starts belong to that scope.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

import pytest

from ._serve import current

_PR_SET_CHILD_SUBREAPER = 36
SETTLE, GRACE = 0.2, 1.0
"""How long a process may take to end by itself, and after SIGTERM, in seconds."""


class LeftoverWarning(UserWarning):
    """A test has left processes."""


class ProcessId(NamedTuple):
    """A process: its id, and its start time in clock ticks after boot, since ids are used again (proc(5))."""

    pid: int
    start: int


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pinfold")
    help = "how to report the processes that a test leaves"
    group.addoption("--pinfold-leftovers", choices=["off", "warn", "error"], help=help)
    parser.addini("pinfold_leftovers", f"{help}: off, warn or error", default="off")


def pytest_configure(config: pytest.Config) -> None:
    mode = config.getoption("pinfold_leftovers") or config.getini("pinfold_leftovers")
    if mode not in ("off", "warn", "error"):
        raise pytest.UsageError(f"pinfold_leftovers={mode}: write off, warn or error")
    if mode != "off":
        config.pluginmanager.register(Leftovers(mode), "pinfold-leftovers")


class Leftovers:
    """Finds what tests leave: descendants of this process that were not there before the test."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        # Processes whose parent has ended become children of this process instead of init, so they stay descendants
        # (PR_SET_CHILD_SUBREAPER(2const), Linux 3.4).
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot become a subreaper")
        self._known: set[ProcessId] = set()

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, None]:
        self._known = descendants()
        yield

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, None]:
        before = descendants()
        yield
        if fixturedef.scope != "function":
            self._known |= descendants() - before

    @pytest.hookimpl(hookwrapper=True, trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, None]:
        outcome = yield
        with ended_by_themselves(descendants() - self._known - _own()) as found:
            left = end(found)
        if not left:
            return
        message = f"{item.nodeid} left {len(left)} process{'es' * (len(left) > 1)}: {', '.join(left)}"
        if self._mode == "error" and outcome.excinfo is None:
            outcome.force_exception(pytest.fail.Exception(message, pytrace=False))
        else:
            warnings.warn(LeftoverWarning(message), stacklevel=1)


def _own() -> set[ProcessId]:
    """The processes of pinfold and of multiprocessing that live as long as this one."""
    own: set[Optional[int]] = set()
    serve = current()
    if serve is not None:
        own.add(serve.pid)
    from multiprocessing import forkserver, resource_tracker

    own.add(getattr(resource_tracker._resource_tracker, "_pid", None))
    own.add(getattr(forkserver._forkserver, "_forkserver_pid", None))
    # The guard of pinfold is a child of `pinfold serve`; its jobs are leftovers.
    everything = _processes()
    guards = {pid for pid, (parent, _, name) in everything.items() if parent in own and name.startswith("pinfold")}
    return {ProcessId(pid, everything[pid][1]) for pid in own | guards if pid is not None and pid in everything}


def _processes() -> dict[int, tuple[int, int, str]]:
    """Returns the parent, start time and name of each process that is no zombie."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", errors="replace") as file:
                    start, _, rest = file.read().rpartition(") ")
            except (FileNotFoundError, ProcessLookupError):
                continue
            fields = rest.split()
            if fields[0] not in "ZX":
                found[int(name)] = (int(fields[1]), int(fields[19]), start.partition(" (")[2])
    return found


def descendants() -> set[ProcessId]:
    """Returns the descendants of this process that are no zombies."""
    everything = _processes()
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in everything.items():
        children.setdefault(parent, []).append(pid)
    found: set[ProcessId] = set()
    queue = [os.getpid()]
    while queue:
        for pid in children.get(queue.pop(), ()):
            found.add(ProcessId(pid, everything[pid][1]))
            queue.append(pid)
    return found


@contextmanager
def ended_by_themselves(processes: set[ProcessId]) -> Generator[dict[int, ProcessId], None, None]:
    """Gives processes a moment to end. Yields the others by their pidfds, and closes these."""
    open_pidfds: dict[int, ProcessId] = {}
    for process in processes:
        try:
            open_pidfds[os.pidfd_open(process.pid)] = process
        except ProcessLookupError:
            pass
    try:
        # A pidfd refers to the process that was found if that process still exists after the pidfd was opened.
        still = descendants()
        found = {pidfd: process for pidfd, process in open_pidfds.items() if process in still}
        yield _wait(found, SETTLE)
    finally:
        for pidfd in open_pidfds:
            os.close(pidfd)


def _wait(processes: dict[int, ProcessId], seconds: float) -> dict[int, ProcessId]:
    """Waits until all have ended, for at most this many seconds. Returns the others."""
    left, deadline = dict(processes), time.monotonic() + seconds
    poll = select.poll()
    for pidfd in left:
        poll.register(pidfd, select.POLLIN)
    while left and (milliseconds := int((deadline - time.monotonic()) * 1000)) > 0:
        for pidfd, _ in poll.poll(milliseconds):
            poll.unregister(pidfd)
            del left[pidfd]
    return left


def end(processes: dict[int, ProcessId]) -> list[str]:
    """Ends processes: SIGTERM, and SIGKILL after a second. Returns their ids and command lines."""
    named = [f"{process.pid} {_command_line(process.pid)}" for process in sorted(processes.values())]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pidfd in processes:
            try:
                signal.pidfd_send_signal(pidfd, number)
            except ProcessLookupError:
                pass
        processes = _wait(processes, GRACE)
    return named


def _command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", errors="replace") as file:
            return file.read().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return "(it has ended)"
