"""The connection to `pinfold serve --stdio` (docs/serve.md), of which each program has at most one.

It starts with the first job, and ends with the program, however that ends.
"""

from __future__ import annotations

import atexit
import base64
import io
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Optional

from ._binary import find_pinfold
from ._errors import PinfoldError, Report, RequestError, ServeEnded

Request = dict[str, Any]
Message = dict[str, Any]

NEEDED = frozenset({"cancel_kill", "close", "credit", "error_code", "job_settings", "output", "stdin"})
"""The capabilities that pinfold must name in its first message."""

CREDIT = 1 << 20
"""How many bytes of an output pinfold sends before the program has taken them."""


class Listener:
    """Receives what happens to a job, in a thread of the connection. No method may block."""

    job: Job
    """Set before the job is submitted."""

    def output(self, stream: str, data: bytes) -> None:
        """The job has written to `stdout` or `stderr`. Call `Job.credit` to let pinfold send more bytes."""

    def input_written(self, count: int) -> None:
        """The job's standard input has received this many bytes."""

    def input_closed(self) -> None:
        """No process reads the job's standard input any more."""

    def message(self, message: Message) -> None:
        """Called with each event of the job, before the other methods."""

    def ended(self) -> None:
        """No process of the job is left, or it was never started. All its output has been delivered."""


class Job:
    """A job: one command, and every process that descends from it."""

    def __init__(self, serve: Serve, name: str, spec: dict[str, Any], listener: Listener) -> None:
        self._serve = serve
        self._listener = listener
        self._stopping = False
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self.id = name
        self.spec = spec
        self.pid: Optional[int] = None
        self.report: Optional[Report] = None
        self.cancelled = False
        self.flow_control = False
        self.error: Optional[PinfoldError] = None
        """Why there is no report: the request was refused, or pinfold ended."""
        self.started = threading.Event()
        """Set when the main process runs, or when the job has ended without one."""
        self.ended = threading.Event()

    def stop(self) -> None:
        """Sends SIGTERM to the processes of the job, and SIGKILL after the grace period of the job."""
        # A second request would kill the job.
        if not self._stopping:
            self._stopping = True
            self._serve.send({"op": "cancel", "id": self.id})

    def kill(self) -> None:
        """Kills every process of the job."""
        if not self.ended.is_set():
            self._serve.send({"op": "cancel", "id": self.id, "kill": True})

    def signal(self, number: int) -> None:
        """Sends a signal to the main process."""
        self._serve.send({"op": "signal", "id": self.id, "signal": str(number)})

    def write(self, data: bytes) -> None:
        """Writes to the standard input, in the order of the calls."""
        self._serve.send({"op": "stdin", "id": self.id, "base64": base64.b64encode(data).decode()})

    def close_input(self) -> None:
        """Closes the standard input after everything that was written."""
        self._serve.send({"op": "close", "id": self.id, "stream": "stdin"})

    def credit(self, stream: str, count: int) -> None:
        """Lets pinfold send this many more bytes of an output."""
        if count > 0 and not self.ended.is_set():
            self._serve.send({"op": "credit", "id": self.id, "stream": stream, "bytes": count})

    @property
    def returncode(self) -> Optional[int]:
        """The exit code of the main process, or the negative number of the signal that ended it."""
        if self.report is None:
            return None
        main = self.report["main"] or {}
        if "exited" in main:
            return int(main["exited"])
        if "signalled" in main:
            return -int(main["signalled"]["signal"])
        return int(self.report["exit_code"])

    def _handle(self, message: Message) -> None:
        event = message["event"]
        self._listener.message(message)
        if event == "data":
            text = message.get("text")
            data = base64.b64decode(message["base64"]) if text is None else text.encode()
            self._listener.output(message["stream"], data)
        elif event == "stdin":
            self._listener.input_written(message["bytes"])
        elif event == "error":
            if message.get("code") == "stdin_closed":
                self._listener.input_closed()
        elif event == "job":
            self._handle_progress(message["what"])
        elif event == "done":
            self.report = message["report"]
            self.cancelled = message["cancelled"]
            self._end()

    def _handle_progress(self, what: dict[str, Any]) -> None:
        if what["event"] == "spawned":
            self.pid = what["pid"]
            self.started.set()
        elif what["event"] == "empty":
            # No process is left, so only what the pipes hold (1 MiB at most by default, pipe(7)) can follow. `done`
            # comes after that, and must not wait for a program that does not read.
            for stream in ("stdout", "stderr") if self.flow_control else ():
                self.credit(stream, CREDIT)

    def _fail(self, error: PinfoldError) -> None:
        self.error = error
        self._end()

    def _end(self) -> None:
        self.ended.set()
        self.started.set()
        self._listener.ended()
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when the job has ended, in a thread of the connection, where it must not block."""
        with self._lock:
            if not self.ended.is_set():
                self._callbacks.append(callback)
                return
        callback()


class Serve:
    """A running `pinfold serve`. Its methods do not block, and may be called in any thread and signal handler."""

    def __init__(self) -> None:
        self._environment = dict(os.environb)
        # As many jobs at a time as the limit on open files allows. Further jobs wait until one of these has ended.
        command = [find_pinfold(), "serve", "--stdio", "-j", "max"]
        if _controllers:
            command += ["--controllers", ",".join(_controllers)]
        # A session of its own: Ctrl-C on the terminal reaches this program, which decides what happens to its jobs.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._ids = itertools.count(1)
        self._jobs: dict[str, Job] = {}
        # SimpleQueue.put can be called in a signal handler that interrupted another put.
        self._requests: queue.SimpleQueue[Optional[tuple[Request, bytes]]] = queue.SimpleQueue()
        # The submit requests, by their line number.
        self._submits: dict[int, Request] = {}
        self._over = False
        self._ready = threading.Event()
        self._missing: frozenset[str] = NEEDED
        self._threads = [
            threading.Thread(target=target, name=f"pinfold-{target.__name__.strip('_')}", daemon=True)
            for target in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()
        self._ready.wait()
        if self._over:
            raise PinfoldError(f"{command[0]} serve ended with code {self._process.wait()} before its first message")
        if self._missing:
            self.close()
            raise PinfoldError(f"{command[0]} is too old for this package: it lacks {', '.join(sorted(self._missing))}")

    def submit(self, spec: dict[str, Any], listener: Listener, **options: Any) -> Job:
        """Runs a job. `spec` is the `job` of the protocol, and `options` are the other fields of `submit`."""
        options = {"output": "data", "credit": CREDIT, **options}
        if options["output"] != "data":
            del options["credit"]
        job = Job(self, str(next(self._ids)), spec, listener)
        job.flow_control = "credit" in options
        job._listener.job = job
        self._jobs[job.id] = job
        try:
            self.send({"op": "submit", "id": job.id, "job": spec, **options})
        except BaseException:
            del self._jobs[job.id]
            raise
        if self._over:
            self._fail_all("pinfold serve has ended")
        return job

    def environment(self, env: dict[str, str]) -> dict[str, Optional[str]]:
        """Returns the `env` that gives a job exactly this environment: the differences from the environment of pinfold."""
        changes: dict[str, Optional[str]] = {}
        for key in self._environment:
            name = os.fsdecode(key)
            if name not in env:
                changes[name] = None
        for name, value in env.items():
            if self._environment.get(os.fsencode(name)) != os.fsencode(value):
                changes[name] = value
        return changes

    def send(self, request: Request) -> None:
        """Sends a request. If a `submit` fails later, its job ends with the error. Other late requests have no effect.

        Raises TypeError or ValueError for what JSON cannot express.
        """
        self._requests.put((request, json.dumps(request, allow_nan=False).encode() + b"\n"))

    def close(self) -> None:
        """Kills all jobs, and waits until no process of them is left."""
        self._requests.put(None)
        self._process.wait()

    def forget(self) -> None:
        """Closes the pipes in a forked child, which keeps no job."""
        for file in (self._process.stdin, self._process.stdout):
            if file is not None:
                file.close()  # The file has no buffer, so no other thread can hold its lock.
        # The child must not wait for a process that is not its own.
        self._process.returncode = 0

    def _write(self) -> None:
        assert self._process.stdin is not None
        stdin = self._process.stdin
        for number in itertools.count(1):
            item = self._requests.get()
            if item is None:
                break
            request, line = item
            if request["op"] == "submit":
                self._submits[number] = request
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[stdin.write(rest) :]
            except OSError:
                return  # The reading thread notices the end of pinfold, and fails all jobs.
        stdin.close()

    def _read(self) -> None:
        assert isinstance(self._process.stdout, io.RawIOBase)
        try:
            for line in io.BufferedReader(self._process.stdout, 1 << 16):
                self._handle(json.loads(line))
        except BaseException:
            self._process.kill()  # No thread reads the messages of pinfold any more, so its jobs must end.
            raise
        finally:
            self._over = True
            self._ready.set()
            self._fail_all(f"pinfold serve ended with code {self._process.wait()}, and with it the job")

    def _fail_all(self, message: str) -> None:
        for name in list(self._jobs):
            job = self._jobs.pop(name, None)
            if job is not None:
                job._fail(ServeEnded(message))

    def _handle(self, message: Message) -> None:
        event = message["event"]
        if event == "hello":
            self._missing = NEEDED.difference(message.get("capabilities", ()))
            self._ready.set()
            return
        if event == "error":
            # Other requests than submit fail when their job, or its standard input, has just ended.
            request = self._submits.pop(message["request"], None)
            job = self._jobs.pop(request["id"], None) if request else None
            if request is not None and job is not None:
                job._fail(RequestError(request, message["message"]))
                return
        if event == "done":
            self._submits.pop(message["request"], None)
            job = self._jobs.pop(message["id"], None)
        else:
            job = self._jobs.get(message.get("id", ""))
        if job is not None:
            job._handle(message)


_lock = threading.Lock()
_serve: Optional[Serve] = None
_controllers: tuple[str, ...] = ()


def configure(*, controllers: Sequence[str]) -> None:
    """Names the cgroup controllers that the limits of later jobs need: `cpu`, `cpuset`, `io`, `memory`, `pids`.

    Raises RuntimeError after the first job, since `pinfold serve` runs then.
    """
    global _controllers
    if _serve is not None:
        raise RuntimeError("pinfold serve runs already: call configure() before the first job")
    _controllers = tuple(controllers)


def serve() -> Serve:
    """Returns the connection of this program, and starts `pinfold serve` if it does not run."""
    global _serve
    with _lock:
        if _serve is None or _serve._over:
            _serve = Serve()
        return _serve


def current() -> Optional[Serve]:
    """Returns the connection, if there is one."""
    return _serve


def _close() -> None:
    if _serve is not None:
        if "multiprocessing.util" in sys.modules:
            # Ends the daemonic processes, and waits for the others. It has no effect when it is called again.
            sys.modules["multiprocessing.util"]._exit_function()
        _serve.close()


def _after_fork() -> None:
    global _serve, _lock
    _lock = threading.Lock()
    if _serve is not None:
        _serve.forget()
        _serve = None


atexit.register(_close)
os.register_at_fork(after_in_child=_after_fork)
