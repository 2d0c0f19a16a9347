"""A base class for tasks of Celery. When a task is revoked or reaches a limit, all processes that it has started end.

    @app.task(base=pinfold.celery.Task, soft_time_limit=60, time_limit=90)
    def build(path):
        subprocess.run(["make", "-C", path])

Each process of Celery's prefork pool keeps a worker of pinfold, in which the bodies of tasks run. Celery ends that
process for `revoke(terminate=True)` and `time_limit`, and pinfold then ends the worker with all its descendants. Where
that process has time to react, and for `soft_time_limit`, the worker is stopped: SIGTERM raises SystemExit in the body,
so that `finally` blocks run, and after `grace` seconds (an attribute of the task; 10 by default) it is killed.

Arguments and results have to be picklable, and the module of the task has to be importable by its name.
"""

from __future__ import annotations

import os
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Optional

import celery

from ._executor import ProcessPoolExecutor

__all__ = ["Task"]

_REQUEST = (
    "id root_id parent_id correlation_id group retries expires eta hostname delivery_info reply_to headers origin "
    "timelimit is_eager"
).split()
"""The parts of the request that the body of a task can see. The others belong to the process of Celery."""

_inside = False
"""Whether this is a worker of pinfold."""


class _Pool:
    """The worker of this process."""

    def __init__(self) -> None:
        self._pid = 0
        self._executor: Optional[ProcessPoolExecutor] = None

    def get(self, grace: Optional[float]) -> ProcessPoolExecutor:
        # Celery forks; a child has a worker of its own.
        if self._executor is None or self._pid != os.getpid():
            self._executor, self._pid = ProcessPoolExecutor(1, grace=grace), os.getpid()
        return self._executor

    def forget(self) -> None:
        self._executor = None


_pool = _Pool()


class Task(celery.Task):  # type: ignore[misc]
    """A task that leaves no process: when it ends, every process that it has started ends too.

    Celery cannot end a direct call or an eager task, so these run as usual, without pinfold.
    """

    abstract = True
    grace: Optional[float] = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        if _inside or request.called_directly or request.is_eager:
            return super().__call__(*args, **kwargs)
        context = {name: getattr(request, name, None) for name in _REQUEST}
        future = _pool.get(self.grace).submit(_run, self, context, args, kwargs)
        try:
            return future.result()
        except BrokenProcessPool:
            _pool.forget()  # The worker was killed, for example by the OOM killer. The next task has another one.
            raise
        except BaseException:
            future.cancel()  # Ends the call after the soft time limit. Has no effect if the body itself has failed.
            raise


def _run(task: Task, context: dict[str, Any], args: Any, kwargs: Any) -> Any:
    """Runs the body, in the worker."""
    global _inside
    _inside = True
    task.push_request(**context)
    try:
        return task.run(*args, **kwargs)
    finally:
        task.pop_request()
