"""The workers of an executor. Each has a thread of this program, which sends calls to it and receives the results."""

from __future__ import annotations

import collections
import pickle
import socket
import threading
import weakref
from concurrent.futures import process as futures_process
from typing import Any, Optional, cast

from ._calls import Call
from ._errors import CallTimeout
from ._worker import Worker

_ABRUPT = "A process in the process pool was terminated abruptly while the future was running or pending."


class _PoolWorker(Worker):
    """A worker that informs the pool when it ends, because the end may be unexpected."""

    def __init__(self, pool: Pool, first: Any, grace: Optional[float]) -> None:
        self._pool = pool
        super().__init__("calls", "pinfold-worker", first, grace)

    def ended(self) -> None:
        super().ended()
        self._pool.wake()

    def terminate(self) -> None:
        """Stops the worker without the knowledge of the pool, as `Process.terminate` does."""
        self.job.stop()

    kill = terminate

    def join(self) -> None:
        """Waits until no process of the worker is left."""
        self.job.ended.wait()


class Pool:
    """Runs calls in at most `size` workers, which start when there are calls for them."""

    def __init__(self, size: int, first: Any, max_calls: Optional[int], grace: Optional[float]) -> None:
        self._size = size
        self._first = first
        self._max_calls = max_calls
        self._grace = grace
        self._changed = threading.Condition()
        self._pending: collections.deque[Call] = collections.deque()
        self._threads: set[threading.Thread] = set()
        self._running: set[Call] = set()
        self._workers: set[_PoolWorker] = set()
        self._starting: set[threading.Thread] = set()
        """The threads that have not started their first worker yet."""
        self._idle = 0
        self._shut = False
        self._broken: Optional[BaseException] = None

    def submit(self, call: Call) -> None:
        """Queues a call. Raises BrokenProcessPool if a worker ended unexpectedly, and RuntimeError after a shutdown."""
        with self._changed:
            if self._broken is not None:
                raise futures_process.BrokenProcessPool(str(self._broken))
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _exiting:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            self._pending.append(call)
            if len(self._pending) > self._idle and len(self._threads) < self._size:
                thread = threading.Thread(target=self._work, name="pinfold-worker", daemon=True)
                self._threads.add(thread)
                self._starting.add(thread)
                thread.start()
            else:
                self._changed.notify()
        _pools.add(self)

    def cancel_running(self, call: Call, kill: bool = False) -> bool:
        """Ends the worker of a call, if the call runs. Does not wait."""
        with self._changed:
            if call not in self._running:
                return False
            call.cancelled = True
            worker = call.worker
        if worker is not None:
            worker.job.kill() if kill else worker.job.stop()
        return True

    def cancel_all(self, kill: bool) -> None:
        """Cancels all calls. Does not wait."""
        with self._changed:
            pending, self._pending = list(self._pending), collections.deque()
            running = list(self._running)
        for call in pending:
            call.future.cancel()
            call.future.set_running_or_notify_cancel()
        for call in running:
            self.cancel_running(call, kill)

    def shut_down(self) -> None:
        """Accepts no more calls. The workers end after the calls that were submitted."""
        with self._changed:
            self._shut = True
            self._changed.notify_all()

    def join(self) -> None:
        """Waits until all workers have ended, after `shut_down`."""
        for thread in list(self._threads):
            thread.join()

    def processes(self) -> dict[int, _PoolWorker]:
        """Returns the workers by their process ids, including the workers that start now."""
        with self._changed:
            self._changed.wait_for(lambda: not self._starting)
            return {worker.job.pid: worker for worker in self._workers if worker.job.pid is not None}

    def broken(self) -> Optional[str]:
        """Returns why the pool does not accept calls, after the unexpected end of a worker."""
        return None if self._broken is None else str(self._broken)

    def wake(self) -> None:
        """Wakes the threads, so that they check their workers. Does not block for long."""
        with self._changed:
            self._changed.notify_all()

    def _next(self, worker: Optional[_PoolWorker]) -> Optional[Call]:
        """Returns the next call, or None at the end of the pool or of this worker."""
        with self._changed:
            while True:
                if self._broken is not None or (worker is not None and worker.job.ended.is_set()):
                    return None
                while self._pending:
                    call = self._pending.popleft()
                    if call.future.set_running_or_notify_cancel():
                        call.worker = worker
                        self._running.add(call)
                        return call
                if self._shut:
                    return None
                self._idle += 1
                try:
                    self._changed.wait()
                finally:
                    self._idle -= 1

    def _work(self) -> None:
        """Runs a thread, which uses one worker at a time."""
        worker: Optional[_PoolWorker] = None
        calls = 0
        try:
            while True:
                call = self._next(worker)
                if call is None:
                    break
                worker = self._run(call, worker)
                del call
                calls += 1
                if worker is None:
                    calls = 0
                elif calls == self._max_calls:
                    self._close(worker)
                    worker, calls = None, 0
        finally:
            self._has_started()
            if worker is not None and worker.job.ended.is_set() and not self._shut:
                self._break(worker)
            if worker is not None:
                self._close(worker)
            with self._changed:
                self._threads.discard(threading.current_thread())

    def _run(self, call: Call, worker: Optional[_PoolWorker]) -> Optional[_PoolWorker]:
        """Runs a call. Returns the worker, or None if it has ended."""
        try:
            if worker is None:
                worker = self._start(call)
            try:
                # The call keeps no reference to the arguments, as in concurrent.futures.
                data = call.take()
            except BaseException as error:
                return self._finish(call, worker, call.future.set_exception, error)
            worker.channel.socket.settimeout(call.timeout)
            worker.channel.send(data)
            del data
            answer = worker.channel.receive()
        except socket.timeout:
            assert worker is not None
            self._end(worker)
            late = CallTimeout(f"the call took longer than {call.timeout} s; its processes have been ended")
            return self._finish(call, None, call.future.set_exception, late)
        except Exception as error:
            self._lost(call, cast(Optional[_PoolWorker], call.worker), error)
            return None
        try:
            succeeded, value = pickle.loads(answer)
        except BaseException as error:
            self._break(worker, error)
            self._lost(call, worker, error)
            return None
        return self._finish(call, worker, call.future.set_result if succeeded else call.future.set_exception, value)

    def _start(self, call: Call) -> _PoolWorker:
        worker = _PoolWorker(self, self._first, self._grace)
        with self._changed:
            self._workers.add(worker)
            call.worker = worker
            cancelled = call.cancelled
        if cancelled:
            worker.job.stop()
        worker.job.started.wait()
        self._has_started()
        worker.connect()
        worker.channel.receive()  # The initializer has run.
        return worker

    def _has_started(self) -> None:
        with self._changed:
            self._starting.discard(threading.current_thread())
            self._changed.notify_all()

    def _finish(self, call: Call, worker: Optional[_PoolWorker], outcome: Any, value: Any) -> Optional[_PoolWorker]:
        with self._changed:
            self._running.discard(call)
            cancelled = call.cancelled
        if not cancelled:
            call.finish(outcome, value)
            return worker
        if worker is not None:
            self._end(worker)
        call.finish(call.future.set_cancelled)
        return None

    def _lost(self, call: Call, worker: Optional[_PoolWorker], error: BaseException) -> None:
        """Handles the end of a worker during a call: the call was cancelled, or the pool does not know the reason."""
        if worker is not None:
            self._end(worker)
        if not call.cancelled:
            self._break(worker, error)
        self._finish(call, None, call.future.set_exception, self._broken)

    def _break(self, worker: Optional[_PoolWorker], error: Optional[BaseException] = None) -> None:
        """Fails all calls, and ends all workers."""
        broken = futures_process.BrokenProcessPool(_ABRUPT + _reason(worker))
        broken.__cause__ = error
        with self._changed:
            if self._broken is not None:
                return
            self._broken = broken
            pending, self._pending = list(self._pending), collections.deque()
            workers = list(self._workers)
            self._changed.notify_all()
        for call in pending:
            if call.future.set_running_or_notify_cancel():
                call.finish(call.future.set_exception, broken)
        for other in workers:
            other.job.stop()

    def _end(self, worker: _PoolWorker) -> None:
        """Stops a worker, and waits until no process of it is left."""
        worker.job.stop()
        self._close(worker)

    def _close(self, worker: _PoolWorker) -> None:
        """Lets a worker end by itself, and waits for that."""
        if hasattr(worker, "channel"):
            worker.channel.socket.close()
        worker.job.ended.wait()
        with self._changed:
            self._workers.discard(worker)


def _reason(worker: Optional[_PoolWorker]) -> str:
    if worker is None:
        return ""
    if worker.job.error is not None:
        return f" {worker.job.error}"
    report = worker.job.report
    return "" if report is None else f" The worker ended: {report['error'] or report['main']}"


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_exiting = False


def _at_exit() -> None:
    """Finishes the calls that were submitted, as concurrent.futures does, before the program ends."""
    global _exiting
    _exiting = True
    for pool in list(_pools):
        pool.shut_down()
        pool.join()


# This function runs before the interpreter waits for its threads. A function of atexit would run after that.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
