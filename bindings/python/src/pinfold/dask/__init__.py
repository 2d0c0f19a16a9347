"""Commands on the workers of a Dask cluster, each with all its processes.

    future = pinfold.dask.run(client, ["make", "test"], timeout=600, retries=2)
    future.result()     # pinfold.CompletedProcess
    future.cancel()     # ends the command on its worker, with every process that it has started

Each worker has one `pinfold serve`. When the worker ends, in any way, its `pinfold serve` and the commands end too. Dask
then runs the commands on another worker. Needs the package `distributed`, and this package on the workers.
"""

from __future__ import annotations

import json
import threading
import uuid
import weakref
from concurrent.futures import CancelledError
from typing import Any, Optional

from distributed import Client, Future, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from .._errors import check_seconds
from .._popen import Popen
from .._run import CompletedProcess, complete
from .._serve import Job, serve

__all__ = ["PinfoldPlugin", "register", "run"]


TOPIC = "pinfold-serve-"
"""The prefix of the topics and of the task keys of `python -m pinfold.dask serve`."""


def send(worker: Any, task: str, message: dict[str, Any]) -> None:
    """Sends an event of a job to its client, through the scheduler. The scheduler does not parse this text."""
    worker.log_event(task.rpartition("/")[0], [task, json.dumps(message)])


class Running:
    """The jobs of this worker by the keys of their tasks. Dask cannot end a running task, so this ends the job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[Any, Optional[Job]] = {}
        self._released: set[Any] = set()

    def begin(self, key: Any) -> bool:
        """Records that a task begins. Returns False if the task was released before."""
        with self._lock:
            if key in self._released:
                self._released.discard(key)
                return False
            self._jobs[key] = None
            return True

    def set(self, key: Any, job: Job) -> None:
        with self._lock:
            self._jobs[key] = job
            released = key in self._released
        if released:
            job.stop()

    def end(self, key: Any) -> None:
        with self._lock:
            self._jobs.pop(key, None)
            self._released.discard(key)

    def release(self, key: Any) -> None:
        """Ends the job of a task that runs, or is about to run."""
        with self._lock:
            self._released.add(key)
            job = self._jobs.get(key)
        if job is not None:
            job.stop()

    def release_all(self) -> None:
        for key in list(self._jobs):
            self.release(key)


RUNNING = Running()


class PinfoldPlugin(WorkerPlugin):  # type: ignore[misc]
    """Starts the `pinfold serve` of a worker, and ends the job of each task that is cancelled while it runs."""

    name = "pinfold"
    idempotent = True

    def setup(self, worker: Any) -> None:
        self._worker = worker
        serve()

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        # The scheduler no longer needs a task that runs: its future was cancelled, or its client is gone.
        if finish != "released" or not isinstance(key, str) or not key.startswith("pinfold-"):
            return
        if start in ("executing", "long-running"):
            RUNNING.release(key)
        elif start in ("waiting", "ready", "constrained") and key.startswith(TOPIC):
            send(self._worker, key, {"event": "released"})

    def teardown(self, worker: Any) -> None:
        RUNNING.release_all()


_registered: weakref.WeakSet[Client] = weakref.WeakSet()


def register(client: Client) -> Any:
    """Installs the plugin on all workers, including later ones. `run` does that too, except with an asynchronous client."""
    _registered.add(client)
    return client.register_plugin(PinfoldPlugin())


def run(
    client: Client,
    command: Any,
    *,
    input: Any = None,
    timeout: Optional[float] = None,
    check: bool = False,
    options: Optional[dict[str, Any]] = None,
    **submit: Any,
) -> Future:
    """Runs a command on a worker, and returns a future with its `pinfold.CompletedProcess`.

    The command runs in a thread of the worker, as a task does. Its output is captured as bytes. `options` are further
    arguments of `pinfold.Popen`, such as `cwd`, `env`, `shell` or `limits`. `submit` are those of `Client.submit`, such
    as `resources`, `retries` and `workers`; with `check`, a task fails if its command fails, and `retries` repeats
    the task. Raises ValueError for an invalid timeout.
    """
    check_seconds("timeout", timeout)
    if client not in _registered:
        register(client)
    # The plugin recognises its tasks by this prefix. Each key is used once, so it cannot be that of a cancelled task.
    submit["key"] = f"pinfold-{uuid.uuid4()}"
    return client.submit(_run, command, input, timeout, check, options or {}, pure=False, **submit)


def _run(command: Any, input: Any, timeout: Optional[float], check: bool, options: dict[str, Any]) -> CompletedProcess:
    """Runs the task, in a thread of the worker."""
    key = get_worker().get_current_task()
    options = {"stdout": -1, "stderr": -1, **options, "job_timeout": timeout}
    if input is not None:
        options["stdin"] = -1
    if not RUNNING.begin(key):
        raise CancelledError(key)
    try:
        with Popen[Any](command, **options) as process:
            RUNNING.set(key, process._job)
            stdout, stderr = process.communicate(input)
    finally:
        RUNNING.end(key)
    return complete(process, stdout, stderr, timeout, check)
