"""`ProcessPoolExecutor`, like that of concurrent.futures. Its `cancel()` also ends running work."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import process as futures_process
from functools import partial
from multiprocessing import context
from types import TracebackType
from typing import Any, Optional, TypeVar

from ._calls import Call, PoolFuture
from ._errors import check_seconds
from ._pool import Pool

_T = TypeVar("_T")
_process_chunk: Any = futures_process._process_chunk


class ProcessPoolExecutor(Executor):
    """Like `concurrent.futures.ProcessPoolExecutor`, with workers that are jobs of pinfold.

    - `future.cancel()` also ends a running call: the worker and every process that the call has started. It returns
      when none of them is left, except in the thread of a running asyncio event loop. A new worker replaces the
      old one.
    - `timeout` (seconds, for each call of this executor) or `submit_timeout(seconds, fn, ...)` end a call in the same
      way. The future then has the exception `CallTimeout`.
    - `shutdown(cancel_futures=True)`, and the end of a `with` block by an exception, cancel running calls too.
    - When this program ends, in any way, the workers and all processes that the calls have started end too.

    A worker that is stopped receives SIGTERM, which raises SystemExit in the call, so that `finally` blocks run. After
    `grace` seconds (10 by default) it is killed. Workers start as with the method `spawn`, which is the only
    `mp_context` that is accepted. If cloudpickle is installed, lambdas and functions of an interactive session can be
    called too.
    """

    def __init__(
        self,
        max_workers: Optional[int] = None,
        mp_context: Optional[context.BaseContext] = None,
        initializer: Optional[Callable[..., object]] = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: Optional[int] = None,
        timeout: Optional[float] = None,
        grace: Optional[float] = None,
    ) -> None:
        if max_workers is None:
            max_workers = len(os.sched_getaffinity(0))
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if mp_context is not None and mp_context.get_start_method() != "spawn":
            raise ValueError("mp_context must be that of spawn: pinfold starts the workers, not this process")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        self._timeout = check_seconds("timeout", timeout)
        self._max_workers = max_workers
        self._mp_context = mp_context or context.SpawnContext()
        self._pool = Pool(
            max_workers, (initializer, tuple(initargs)), max_tasks_per_child, check_seconds("grace", grace)
        )
        # An executor without references ends when its calls are done.
        weakref.finalize(self, self._pool.shut_down).atexit = False

    # CPython's own tests, and some programs, read these attributes.
    @property
    def _broken(self) -> Optional[str]:
        return self._pool.broken()

    @property
    def _processes(self) -> dict[int, Any]:
        return self._pool.processes()

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Like `submit` of concurrent.futures. The call may take at most the `timeout` of the executor."""
        return self._submit(self._timeout, fn, args, kwargs)

    def submit_timeout(self, seconds: Optional[float], fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Like `submit`. The call may take this many seconds after its start; None is no limit."""
        return self._submit(check_seconds("timeout", seconds), fn, args, kwargs)

    def _submit(self, timeout: Optional[float], fn: Any, args: Any, kwargs: Any) -> Future[Any]:
        future = PoolFuture(self._pool)
        self._pool.submit(Call(future, fn, args, kwargs, timeout))
        return future

    def map(
        self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: Optional[float] = None, chunksize: int = 1
    ) -> Iterator[_T]:
        """Like `map` of concurrent.futures. When `timeout` is over or a call fails, the other calls are cancelled."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        timeout = check_seconds("timeout", timeout)
        results = super().map(partial(_process_chunk, fn), _chunks(zip(*iterables), chunksize), timeout=timeout)
        return _flatten(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Like `shutdown` of concurrent.futures. `cancel_futures` also ends the calls that run."""
        self._pool.shut_down()
        if cancel_futures:
            self._pool.cancel_all(kill=False)
        if wait:
            self._pool.join()

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        """Waits for the calls. If an exception ends the block, cancels them, so that the exception is not delayed."""
        self.shutdown(wait=True, cancel_futures=kind is not None)

    def terminate_workers(self) -> None:
        """Stops all workers, and cancels all calls, as `shutdown(wait=False, cancel_futures=True)`."""
        self.shutdown(wait=False, cancel_futures=True)

    def kill_workers(self) -> None:
        """Kills all workers at once, and cancels all calls."""
        self._pool.shut_down()
        self._pool.cancel_all(kill=True)


def _chunks(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[tuple[Any, ...], ...]]:
    while chunk := tuple(itertools.islice(rows, size)):
        yield chunk


def _flatten(chunks: Iterator[list[_T]]) -> Iterator[_T]:
    # Keeps no references to the results that have been yielded.
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
