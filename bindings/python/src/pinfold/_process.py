"""`Process`, as multiprocessing has it, for a process with all its descendants."""

from __future__ import annotations

import os
from multiprocessing import context, process, util
from typing import Any, Optional

from ._errors import Report
from ._serve import Job
from ._worker import Worker, WorkerFailed


class _ProcessWorker(Worker):
    """A worker that makes a descriptor readable when no process of its job is left."""

    def __init__(self, process_obj: Process) -> None:
        self.sentinel, self._write_end = os.pipe()
        super().__init__("process", process_obj.name, process_obj, process_obj.grace)

    def ended(self) -> None:
        super().ended()
        os.close(self._write_end)


class RunningProcess:
    """A running process, as `multiprocessing.process.BaseProcess` needs it (Lib/multiprocessing/popen_fork.py)."""

    def __init__(self, process_obj: Process) -> None:
        util._flush_std_streams()  # type: ignore[attr-defined]
        self._worker = _ProcessWorker(process_obj)
        self.sentinel = self._worker.sentinel
        self.job: Job = self._worker.job
        self.finalizer = util.Finalize(self, os.close, [self.sentinel])
        try:
            self._worker.connect()
        except WorkerFailed:
            if self.job.error is not None:
                raise self.job.error from None
            if self.job.pid is None and self.job.report is not None:
                raise OSError(self.job.report["error"]) from None
        self.job.started.wait()
        self.pid = self.job.pid

    @property
    def returncode(self) -> Optional[int]:
        return self.job.returncode if self.job.error is None else 125

    def poll(self, _flag: int = 0) -> Optional[int]:
        return self.returncode

    def wait(self, timeout: Optional[float] = None) -> Optional[int]:
        self.job.ended.wait(timeout)
        return self.returncode

    def terminate(self) -> None:
        self.job.stop()

    def kill(self) -> None:
        self.job.kill()

    def close(self) -> None:
        self.finalizer()


class Process(process.BaseProcess):
    """Like `multiprocessing.Process`, for a process with all its descendants, started as with the method `spawn`.

    `terminate` sends SIGTERM to all of them. In the process itself, SIGTERM raises SystemExit, so that `finally` blocks
    run. After `grace` seconds (10 by default), all are killed. `kill` kills all at once. `join`, `exitcode`, `is_alive`
    and `sentinel` report the end when none of them is left. `report` is the report of pinfold, once the
    process has ended.

    Locks, events and queues have to be those of this package, or of `multiprocessing.get_context("spawn")`.
    """

    _start_method = "spawn"
    _Popen = RunningProcess
    _popen: Optional[RunningProcess]

    def __init__(
        self,
        group: None = None,
        target: Any = None,
        name: Optional[str] = None,
        args: Any = (),
        kwargs: Any = {},
        *,
        daemon: Optional[bool] = None,
        grace: Optional[float] = None,
    ) -> None:
        super().__init__(group, target, name, args, kwargs, daemon=daemon)
        self.grace = grace

    @property
    def report(self) -> Optional[Report]:
        """The report of pinfold; None while the process runs."""
        return None if self._popen is None else self._popen.job.report


_spawn = context.SpawnContext()
# These can be given to a Process, and to the initializer of an executor.
Array = _spawn.Array
Barrier = _spawn.Barrier
BoundedSemaphore = _spawn.BoundedSemaphore
Condition = _spawn.Condition
Event = _spawn.Event
JoinableQueue = _spawn.JoinableQueue
Lock = _spawn.Lock
Manager = _spawn.Manager
Pipe = _spawn.Pipe
Queue = _spawn.Queue
RLock = _spawn.RLock
Semaphore = _spawn.Semaphore
SimpleQueue = _spawn.SimpleQueue
Value = _spawn.Value
active_children = _spawn.active_children
current_process = _spawn.current_process
parent_process = _spawn.parent_process
