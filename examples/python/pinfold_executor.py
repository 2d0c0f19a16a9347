"""A concurrent.futures.Executor whose cancel() ends running work, including the children of its workers.

    with PinfoldExecutor(max_workers=4) as executor:
        future = executor.submit(function, argument)
        future.cancel()        # True if it was waiting or running; none of its processes is left.

Each call runs in a Python process of its own, as a job of one `pinfold serve` (docs/serve.md). When this program ends,
in any way, everything that it has submitted ends too. Functions, arguments and results have to be picklable, as for
ProcessPoolExecutor.
"""

import base64
import itertools
import json
import multiprocessing.spawn
import pickle
import subprocess
import sys
import threading
from concurrent.futures import Executor, Future

# The program of a worker. It writes the result to standard output. Output of the function goes to standard error.
WORKER = """
import base64, multiprocessing.spawn, os, pickle, sys
result_fd = os.dup(1)
os.dup2(2, 1)
preparation, call = pickle.loads(base64.b64decode(sys.stdin.buffer.read()))
multiprocessing.spawn.prepare(preparation)
try:
    function, args, kwargs = pickle.loads(call)
    result = (True, function(*args, **kwargs))
except BaseException as error:
    result = (False, error)
try:
    result = pickle.dumps(result)
except Exception as error:
    result = pickle.dumps((False, error))
sys.stdout.flush()
with os.fdopen(result_fd, "wb") as out:
    out.write(base64.b64encode(result) + b"\\n")
"""


class JobFailed(Exception):
    """A worker ended without a result: it was killed, or it reached its deadline. `report` contains the details."""

    def __init__(self, report, stderr):
        super().__init__(f"{report['name']} ended: {report['reason']}, {report['main'] or report['error']}\n{stderr}")
        self.report = report


class PinfoldFuture(Future):
    """A future that can be cancelled while it runs. When it is done, `report` is the report of pinfold."""

    def __init__(self, cancel_job):
        super().__init__()
        self._cancel_job = cancel_job
        self._gone = threading.Event()
        self.report = None

    def cancel(self):
        """Ends the work and waits until none of its processes is left. Returns False if the work was already done."""
        if self.done():
            return self.cancelled()
        self._cancel_job()
        self._gone.wait()
        return self.cancelled()

    def _settle(self, message, result, stderr):
        self.report = message["report"]
        if message["cancelled"]:
            super().cancel()
            self.set_running_or_notify_cancel()
        elif result is None:
            self.set_exception(JobFailed(self.report, stderr))
        else:
            succeeded, value = result
            (self.set_result if succeeded else self.set_exception)(value)
        self._gone.set()


class PinfoldExecutor(Executor):
    """Runs each call in its own process, `max_workers` calls at a time, each for at most `timeout` seconds."""

    def __init__(self, max_workers=None, timeout=None, grace=10.0, pinfold="pinfold"):
        command = [pinfold, "serve", "--stdio", "-j", str(max_workers or "auto"), "--grace", f"{grace}s"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._timeout = timeout
        self._lines = 0  # The number of lines sent. Each answer contains the number of its request.
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._futures = {}  # The futures, by the id of the job.
        self._submits = {}  # The ids, by the line number of their submit request.
        self._outputs = {}
        self._closed = False
        self._idle = threading.Condition(self._lock)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def submit(self, fn, /, *args, **kwargs):
        call = pickle.dumps((fn, args, kwargs))
        preparation = multiprocessing.spawn.get_preparation_data("pinfold-worker")
        preparation.pop("authkey", None)  # This is for connections between workers, which do not exist here.
        stdin = base64.b64encode(pickle.dumps((preparation, call))).decode()
        job = {"command": [sys.executable, "-c", WORKER], "stdin": stdin, "name": getattr(fn, "__name__", "call")}
        if self._timeout is not None:
            job["timeout"] = self._timeout
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            name = str(next(self._ids))
            future = PinfoldFuture(lambda: self._send({"op": "cancel", "id": name}))
            self._futures[name] = future
            self._outputs[name] = ([], [])
        self._send({"op": "submit", "id": name, "job": job}, submits=name)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        with self._lock:
            self._closed = True
            names = list(self._futures) if cancel_futures else []
        for name in names:
            self._send({"op": "cancel", "id": name})
        if wait:
            with self._idle:
                self._idle.wait_for(lambda: not self._futures)
            self._process.stdin.close()
            self._reader.join()
            self._process.wait()

    def _send(self, message, submits=None):
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._lines += 1
                if submits is not None:
                    self._submits[self._lines] = submits
                self._process.stdin.write(line)
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # The reader thread notices the end of pinfold, and fails all futures.

    def _read(self):
        for line in self._process.stdout:
            message = json.loads(line)
            if message["event"] == "output":
                self._outputs[message["id"]][message["stream"] == "stderr"].append(message["line"])
            elif message["event"] == "output_bytes":
                text = bytes(message["bytes"]).decode(errors="replace")
                self._outputs[message["id"]][message["stream"] == "stderr"].append(text)
            elif message["event"] == "done":
                self._done(message)
            elif message["event"] == "error" and message["request"] in self._submits:
                # An error for another request, such as a late cancel, is ignored.
                name = self._submits[message["request"]]
                report = {"name": name, "reason": "refused", "main": None, "error": message["message"]}
                self._done({"request": message["request"], "id": name, "cancelled": False, "report": report})
        for name in list(self._futures):
            report = {"name": name, "reason": "pinfold ended", "main": None, "error": None}
            self._done({"request": None, "id": name, "cancelled": False, "report": report})

    def _done(self, message):
        with self._lock:
            self._submits.pop(message["request"], None)
            future = self._futures[message["id"]]
            stdout, stderr = self._outputs.pop(message["id"])
        try:
            result = pickle.loads(base64.b64decode("".join(stdout))) if stdout and stdout[-1] else None
        except Exception as error:
            result = (False, error)
        future._settle(message, result, "\n".join(stderr))
        with self._idle:
            del self._futures[message["id"]]
            self._idle.notify_all()
