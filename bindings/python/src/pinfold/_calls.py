"""The calls of an executor, and their futures."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import _base as futures_base
from concurrent.futures import process as futures_process
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from ._pool import Pool
    from ._worker import Worker


RemoteTraceback: Any = futures_process._RemoteTraceback


class PoolFuture(Future[Any]):
    """A future whose `cancel()` also ends a call that runs."""

    _call: Optional[Call] = None

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self._pool = pool

    def cancel(self) -> bool:
        """Cancels the call, and returns whether it is cancelled. A call that is done cannot be cancelled.

        If the call is running, this waits until no process of its worker is left. In the thread of a running asyncio
        event loop it does not wait: the future is cancelled a little later.
        """
        if super().cancel():
            return True
        call = self._call
        if call is None or not self._pool.cancel_running(call):
            return self.cancelled()
        if asyncio._get_running_loop() is None:
            call.over.wait()
            return self.cancelled()
        return True

    def set_cancelled(self) -> None:
        """Marks a running call as cancelled. `concurrent.futures` has no method for this."""
        with self._condition:
            self._state = futures_base.CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]


class Call:
    """A call of a function, and its state while it runs. The lock of the pool protects `cancelled` and `worker`."""

    def __init__(self, future: PoolFuture, fn: Any, args: Any, kwargs: Any, timeout: Optional[float]) -> None:
        self.future = future
        self.fn, self.args, self.kwargs = fn, args, kwargs
        self.timeout = timeout
        self.cancelled = False
        self.worker: Optional[Worker] = None
        self.over = threading.Event()
        """Set after the future has got its result, exception or cancellation."""
        future._call = self

    def take(self) -> bytes:
        """Pickles the function and the arguments, and keeps no reference to them. Raises the errors of pickling."""
        what: Any = (self.fn, self.args, self.kwargs)
        self.fn = self.args = self.kwargs = None
        try:
            return bytes(dumps(what))
        except BaseException as error:
            # The frames of the traceback would keep the arguments alive, so only its text stays.
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            error.__cause__ = RemoteTraceback(f'\n"""\n{text}"""')
            raise error.with_traceback(None)
        finally:
            del what

    def finish(self, set_outcome: Callable[..., None], *arguments: Any) -> None:
        """Gives the future its outcome."""
        self.future._call = None
        set_outcome(*arguments)
        self.over.set()


def dumps(what: Any) -> Any:
    """Pickles an object. Where that fails, and for an interactive session, this uses cloudpickle if it is installed."""
    main = sys.modules["__main__"]
    # A worker can import the main module only from a file or by its name.
    interactive = getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None
    if not interactive:
        try:
            return reduction.ForkingPickler.dumps(what)
        except Exception:
            if _cloudpickle() is None:
                raise
    cloudpickle = _cloudpickle()
    return (reduction.ForkingPickler if cloudpickle is None else cloudpickle).dumps(what)


def _cloudpickle() -> Any:
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        return None
