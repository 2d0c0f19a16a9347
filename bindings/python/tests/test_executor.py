"""The executor behaves like that of concurrent.futures, and ends running calls with all that they have started."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import functions
import pytest
from pinfold import CallTimeout, Event, ProcessPoolExecutor
from support import BOUND, all_gone, alive, pids, until


def test_results_and_exceptions() -> None:
    with ProcessPoolExecutor(2) as executor:
        assert list(executor.map(divmod, [7, 8, 9], [2, 3, 4])) == [(3, 1), (2, 2), (2, 1)]
        assert list(executor.map(abs, range(-100, 0), chunksize=7)) == list(range(100, 0, -1))
        with pytest.raises(ZeroDivisionError) as failed:
            executor.submit(divmod, 1, 0).result()
        assert "Traceback" in str(failed.value.__cause__)
        with pytest.raises(Exception, match="pickle"):
            executor.submit(list, (number for number in [])).result()
        assert executor.submit(len, b"x" * 10_000_000).result() == 10_000_000
        assert executor.submit(bytes, 10_000_000).result() == bytes(10_000_000)


def test_the_pool_that_hangs(tmp_path: Path) -> None:
    """Five calls that hang, on two workers. With concurrent.futures, `with` would wait for all of them."""
    with pytest.raises(concurrent.futures.TimeoutError):
        with ProcessPoolExecutor(2) as executor:
            futures = [executor.submit(functions.note_and_sleep, str(tmp_path / str(n))) for n in range(5)]
            first = pids(tmp_path / "0") + pids(tmp_path / "1")
            list(concurrent.futures.as_completed(futures, timeout=0.1))
    assert all(future.cancelled() for future in futures)
    assert all_gone(first)


def test_cancel_ends_the_tree_and_the_pool_goes_on(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(functions.note_and_sleep, str(tmp_path / "x"))
        tree = pids(tmp_path / "x")
        assert all(map(alive, tree)) and future.running()
        assert future.cancel() and future.cancelled() and all_gone(tree)
        assert executor.submit(abs, -4).result() == 4
        done = executor.submit(abs, -5)
        done.result()
        assert not done.cancel() and not done.cancelled()


def test_cancel_runs_finally_and_then_kills(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit(functions.with_finally, str(tmp_path / "x"))
        begun = pids(tmp_path / "x.begun")
        assert future.cancel()
        assert pids(tmp_path / "x.finally") == begun


def test_waiters_see_a_cancelled_call(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1) as executor:
        futures = [executor.submit(functions.note_and_sleep, str(tmp_path / "x")), executor.submit(abs, -1)]
        called: list[bool] = []
        futures[0].add_done_callback(lambda future: called.append(future.cancelled()))
        pids(tmp_path / "x")
        futures[0].cancel()
        assert concurrent.futures.wait(futures, BOUND).not_done == set()
        assert called == [True] and futures[1].result() == 1


def test_timeout_of_a_call(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1) as executor:
        future = executor.submit_timeout(2, functions.note_and_sleep, str(tmp_path / "x"))
        with pytest.raises(CallTimeout):
            future.result(BOUND)
        assert all_gone(pids(tmp_path / "x"))
        assert executor.submit_timeout(BOUND, abs, -1).result() == 1
    for invalid in (-1, float("nan"), "soon"):
        with pytest.raises(ValueError, match="timeout"):
            ProcessPoolExecutor(1, timeout=invalid)  # type: ignore[arg-type]


def test_workers_stay_and_are_replaced() -> None:
    with ProcessPoolExecutor(1) as executor:
        assert len({executor.submit(functions.pid).result() for _ in range(20)}) == 1
    with ProcessPoolExecutor(1, max_tasks_per_child=2) as executor:
        workers = [executor.submit(functions.pid).result() for _ in range(4)]
        assert workers[0] == workers[1] != workers[2] == workers[3]


def test_initializer() -> None:
    event = Event()
    with ProcessPoolExecutor(1, initializer=functions.set_state, initargs=(("a", event),)) as executor:
        future = executor.submit(functions.get_state)
        with pytest.raises(Exception, match="[Pp]ick|inherit|shar"):
            future.result()  # An event cannot be sent back. The worker received it, so the pool continues.
        assert executor.submit(abs, -1).result() == 1
    with ProcessPoolExecutor(1, initializer=functions.fail) as executor:
        with pytest.raises(BrokenProcessPool):
            executor.submit(abs, 1).result(BOUND)


def test_a_worker_that_dies_breaks_the_pool() -> None:
    executor = ProcessPoolExecutor(1)
    futures = [executor.submit(functions.die), executor.submit(abs, 1)]
    for future in futures:
        with pytest.raises(BrokenProcessPool):
            future.result(BOUND)
    with pytest.raises(BrokenProcessPool, match="SIGKILL"):
        executor.submit(abs, 1)
    executor.shutdown()


def test_an_idle_worker_that_dies_breaks_the_pool() -> None:
    executor = ProcessPoolExecutor(1)
    worker = executor.submit(functions.pid).result()
    os.kill(worker, 9)

    def broken() -> bool:
        try:
            executor.submit(abs, 1)
        except BrokenProcessPool:
            return True
        return False

    until(broken, "the pool notices")
    executor.shutdown()


def test_shutdown(tmp_path: Path) -> None:
    executor = ProcessPoolExecutor(2)
    futures = [executor.submit(time.sleep, 0.05) for _ in range(6)]
    executor.shutdown()
    assert all(future.done() and not future.cancelled() for future in futures)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    executor = ProcessPoolExecutor(1)
    futures = [executor.submit(functions.note_and_sleep, str(tmp_path / "x")) for _ in range(3)]
    tree = pids(tmp_path / "x")
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures) and all_gone(tree)


def test_an_executor_that_nothing_refers_to() -> None:
    executor = ProcessPoolExecutor(2)
    results = executor.map(abs, range(-9, 0))
    workers = list(executor._processes.values())
    assert workers
    del executor
    gc.collect()
    assert list(results) == list(range(9, 0, -1))
    for worker in workers:
        worker.join()


def test_shutdown_without_waiting() -> None:
    executor = ProcessPoolExecutor(2)
    results = executor.map(abs, range(-9, 0))
    workers = list(executor._processes.values())
    executor.shutdown(wait=False)
    assert list(results) == list(range(9, 0, -1))
    for worker in workers:
        worker.join()


def test_kill_workers(tmp_path: Path) -> None:
    executor = ProcessPoolExecutor(1)
    future = executor.submit(functions.ignore_sigterm, str(tmp_path / "x"))
    worker = pids(tmp_path / "x")
    executor.kill_workers()
    executor.shutdown()
    assert future.cancelled() and all_gone(worker)


def test_asyncio(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, abs, -3) == 3
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(executor, functions.note_and_sleep, str(tmp_path / "x")), 1)

    with ProcessPoolExecutor(1) as executor:
        asyncio.run(main())
        assert executor.submit(abs, -1).result(BOUND) == 1
    assert not os.path.exists(tmp_path / "x") or all_gone(pids(tmp_path / "x"))


def test_contexts() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        assert executor.submit(abs, -1).result() == 1
    with pytest.raises(ValueError, match="spawn"):
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))


PROGRAM = """
import os, signal, sys, threading
from pinfold import ProcessPoolExecutor
import functions

def square(number):
    return number * number

if __name__ == "__main__":
    executor = ProcessPoolExecutor(1)
    print(executor.submit(square, 4).result(), flush=True)
    if sys.argv[1] == "kill":
        executor.submit(functions.note_and_sleep, sys.argv[2])
        sys.stdin.read()
    executor.submit(functions.print_lines)
"""


def test_functions_of_main_and_the_end_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    ended = subprocess.run([*command, "end"], env=environment, capture_output=True, text=True, timeout=BOUND)
    assert (ended.stdout, ended.stderr) == ("16\nto stdout\n", "to stderr\n")
    path = tmp_path / "x"
    with subprocess.Popen([*command, "kill", str(path)], env=environment, stdin=subprocess.PIPE) as killed:
        tree = pids(path)
        killed.kill()
        killed.wait()
        until(lambda: all_gone(tree), "the end of the worker and its child")


def test_lambdas() -> None:
    pytest.importorskip("cloudpickle")
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(lambda: 42).result() == 42
