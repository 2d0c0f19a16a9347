"""The client's side of `python -m pinfold.dask serve`: the protocol of `pinfold serve` for the jobs of a cluster."""

from __future__ import annotations

import json
import queue
import threading
import time
import uuid
from collections.abc import Iterable
from typing import IO, Any, Optional

from distributed import Client

from .._errors import RequestError
from . import TOPIC, register
from ._forward import forward

CAPABILITIES = ["error_code", "job_settings", "output", "user_data"]
LOST = 30.0
"""How many seconds a worker may take to report the end of a cancelled job, in addition to the job's grace period."""
_SUBMIT_FIELDS = {"op", "id", "job", "output", "data"}


class Failure(Exception):
    """A request failed, with this code of the protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Active:
    """A job that is not done."""

    def __init__(self, number: int, request: dict[str, Any]) -> None:
        self.number = number
        self.request = request
        self.future: Any = None
        self.task = ""
        self.attempts = 0
        self.cancelled = False
        self.timer: Optional[threading.Timer] = None


class Engine:
    """Answers the requests of a program with the events of jobs that Dask runs. All methods are thread-safe."""

    def __init__(self, client: Client, out: IO[bytes], version: str, retries: int) -> None:
        self._client = client
        self._retries = retries
        self._topic = f"{TOPIC}{uuid.uuid4()}"
        self._lock = threading.RLock()
        self._jobs: dict[str, _Active] = {}
        self._by_task: dict[str, str] = {}
        self._idle = threading.Condition(self._lock)
        self._events: queue.SimpleQueue[Optional[dict[str, Any]]] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, args=(out,), daemon=True)
        self._writer.start()
        register(client)
        client.subscribe_topic(self._topic, self._on_event)
        workers = sum(client.nthreads().values())
        self._events.put({
            "event": "hello",
            "protocol": 1,
            "version": version,
            "capabilities": CAPABILITIES,
            "workers": workers,
            "stdin_window": 0,
        })

    def _write(self, out: IO[bytes]) -> None:
        for event in iter(self._events.get, None):
            try:
                out.write(json.dumps(event).encode() + b"\n")
                out.flush()
            except OSError:
                return  # The program has closed its end, so it wants no more events.

    def serve(self, lines: Iterable[bytes]) -> None:
        """Handles requests until there are no more, then closes the engine."""
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    self._handle(number, line)
        finally:
            self.close()

    def close(self) -> None:
        """Cancels all jobs. Waits at most 60 s until they are done, then at most 30 s until the events are written."""
        for name in list(self._jobs):
            self._cancel(name)
        with self._idle:
            self._idle.wait_for(lambda: not self._jobs, LOST * 2)
        self._events.put(None)
        self._writer.join(LOST)

    def _handle(self, number: int, line: bytes) -> None:
        name: Any = None
        try:
            try:
                request = json.loads(line)
                name = request.get("id")
            except (ValueError, AttributeError) as error:
                raise Failure("invalid", f"the request is no JSON object: {error}") from None
            if not isinstance(name, str):
                raise Failure("invalid", "id must be a string")
            operation = request.get("op")
            if operation == "submit":
                self._submit(number, name, request)
            elif operation == "cancel":
                if not self._cancel(name):
                    raise Failure("no_such_job", "no such job exists, or the job is done")
            else:
                raise Failure("invalid", f"{operation} is not possible for jobs that Dask runs")
        except Failure as failure:
            event = {"event": "error", "request": number, "id": name, "code": failure.code, "message": str(failure)}
            self._events.put(event)

    def _submit(self, number: int, name: str, request: dict[str, Any]) -> None:
        unknown = set(request) - _SUBMIT_FIELDS
        if unknown:
            raise Failure("invalid", f"{', '.join(sorted(unknown))} of submit is not possible for jobs that Dask runs")
        if not isinstance(request.get("job"), dict):
            raise Failure("invalid", "job must be an object")
        with self._lock:
            if name in self._jobs:
                raise Failure("duplicate_id", "another job has this id and is not done: that job continues")
            active = self._jobs[name] = _Active(number, request)
            # The worker finds the topic in the key.
            task = active.task = f"{self._topic}/{number}"
            self._by_task[task] = name
        options = {"output": request.get("output", "lines")}
        # Calls of the client need the client's thread. In `_on_event`, this thread may wait for the lock. So the calls
        # are made without the lock. If a worker is lost, Dask itself runs its jobs again.
        active.future = self._client.submit(
            forward, request["job"], options, key=task, pure=False, retries=self._retries
        )
        active.future.add_done_callback(lambda future: self._on_future(name, active, future))

    def _cancel(self, name: str) -> bool:
        """Cancels a job. Returns False if no such job exists."""
        with self._lock:
            active = self._jobs.get(name)
            if active is None:
                return False
            if active.cancelled:
                return True
            active.cancelled = True
        on_a_worker = self._client.run_on_scheduler(_is_processing, active.task)
        active.future.cancel()
        if not on_a_worker:
            self._finish(name, active, _report(active, "cancelled", None))
            return True
        # The worker reports the end, or that it has not started the job.
        grace = active.request["job"].get("grace", 10)
        wait = LOST + (grace if isinstance(grace, (int, float)) else 0)
        with self._lock:
            if self._jobs.get(name) is active:
                active.timer = threading.Timer(wait, self._lost, (name, active))
                active.timer.daemon = True
                active.timer.start()
        return True

    def _lost(self, name: str, active: _Active) -> None:
        self._finish(name, active, _report(active, "guard_lost", "its worker did not report the end of the job"))

    def _on_event(self, event: Any) -> None:
        """Handles an event of a job. Runs in the thread of the client."""
        task, text = event[1]
        with self._lock:
            name = self._by_task.get(task)
            if name is None:
                return
            active, message = self._jobs[name], json.loads(text)
            message["id"] = name
            if message["event"] == "released":
                self._finish(name, active, _report(active, "cancelled", None))
                return
            if message["event"] == "error":
                return  # The exception of the future is this error.
            if message["event"] == "done":
                self._finish(name, active, message["report"], message["success"])
                return
            if message["event"] == "job":
                active.attempts += message["what"]["event"] == "spawned"
                message["attempt"] = max(active.attempts, 1)
            self._events.put(message)

    def _on_future(self, name: str, active: _Active, future: Any) -> None:
        """Handles the end of a task. An event of the worker reports the end of the job, unless the task failed before."""
        if future.status != "error":
            return
        error = future.exception()
        with self._lock:
            if self._jobs.get(name) is not active:
                return
            if isinstance(error, RequestError):
                event = {"event": "error", "request": active.number, "id": name, "code": "invalid"}
                self._forget(name, active)
                self._events.put({**event, "message": error.message})
                return
            self._finish(name, active, _report(active, "guard_lost", f"{type(error).__name__}: {error}"))

    def _forget(self, name: str, active: _Active) -> None:
        if active.timer is not None:
            active.timer.cancel()
        del self._jobs[name]
        self._by_task.pop(active.task, None)
        self._idle.notify_all()

    def _finish(self, name: str, active: _Active, report: dict[str, Any], success: bool = False) -> None:
        with self._lock:
            if self._jobs.get(name) is not active:
                return
            self._forget(name, active)
            done: dict[str, Any] = {
                "event": "done",
                "request": active.number,
                "id": name,
                "success": success,
                "cancelled": active.cancelled,
                "attempts": active.attempts,
                "report": report,
            }
            if "data" in active.request:
                done["data"] = active.request["data"]
            self._events.put(done)


def _is_processing(task: str, dask_scheduler: Any = None) -> bool:
    """Returns whether a worker has the task. Runs in the scheduler."""
    state = dask_scheduler.tasks.get(task)
    return state is not None and state.state == "processing"


def _report(active: _Active, reason: str, error: Optional[str]) -> dict[str, Any]:
    """Returns the report of a job that no worker has reported (docs/report.schema.json, version 1)."""
    job = active.request["job"]
    command = [str(word) for word in job.get("command") or [""]]
    phases = "spawned main_exited settled stopping killing empty gone".split()
    figure = {"value": None, "source": error or "the command was not started"}
    figures = (
        "cpu_user_microseconds cpu_system_microseconds memory_current_bytes memory_peak_bytes main_resident_peak_bytes "
        "swap_current_bytes swap_peak_bytes processes_current processes_peak forks_refused io_read_bytes "
        "io_written_bytes io_reads io_writes"
    )
    return {
        "version": 1,
        "name": job.get("name") or command[0].rsplit("/", 1)[-1],
        "command": command,
        "cwd": job.get("cwd"),
        "pid": None,
        "containment": {"kind": None, "cgroup": None, "born": None, "refused": []},
        "sandbox": None,
        "main": None,
        "reason": reason,
        "error": error,
        "exit_code": 125,
        "killed": False,
        "phases": {"requested_at": time.time(), **dict.fromkeys(phases)},
        "usage": dict.fromkeys(figures.split(), figure),
        "oom": None,
        **{kind: {"count": 0, "processes": []} for kind in ("leftovers", "stopped", "emigrants", "unkillable")},
        "not_removed": [],
    }
