"""Run with: python3 -m pytest examples/python. `pinfold` has to be in PATH, or PINFOLD has to contain its path."""

import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from pinfold_executor import JobFailed, PinfoldExecutor

PINFOLD = os.environ.get("PINFOLD", "pinfold")


def executor(**settings):
    return PinfoldExecutor(pinfold=PINFOLD, **settings)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(") ", 1)[1][0] not in "ZX"
    except FileNotFoundError:
        return False


def note_and_sleep(path, seconds):
    """Starts a child in its own session, writes its own pid and that of the child to a file, and hangs."""
    child = subprocess.Popen(["setsid", "sleep", str(seconds)])
    with open(path + ".new", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(path + ".new", path)
    time.sleep(seconds)


def pids(path):
    deadline = time.monotonic() + 20
    while not os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with open(path) as file:
        return [int(pid) for pid in file.read().split()]


def divide(a, b):
    print("output of a function is not its result")
    return a / b


def die():
    os.write(2, b"last words \xff\n")
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_and_exceptions():
    with executor(max_workers=2) as pool:
        assert list(pool.map(divide, [6, 8, 9], [2, 4, 3])) == [3, 2, 3]
        with pytest.raises(ZeroDivisionError):
            pool.submit(divide, 1, 0).result()
        with pytest.raises(JobFailed) as failed:
            pool.submit(die).result()
        assert failed.value.report["main"]["signalled"]["name"] == "SIGKILL"
        assert "last words \ufffd" in str(failed.value)


def test_the_pool_that_hangs(tmp_path):
    """Five tasks of 100 s on two workers. With ProcessPoolExecutor, `with` would wait for 200 s after the timeout."""
    begun = time.monotonic()
    pool = executor(max_workers=2)
    futures = [pool.submit(note_and_sleep, str(tmp_path / str(number)), 100) for number in range(5)]
    first = pids(str(tmp_path / "0")) + pids(str(tmp_path / "1"))
    with pytest.raises(concurrent.futures.TimeoutError):
        list(concurrent.futures.as_completed(futures, timeout=1))
    pool.shutdown(cancel_futures=True)
    assert time.monotonic() - begun < 60
    assert all(future.cancelled() for future in futures)
    assert not any(alive(pid) for pid in first)
    reasons = sorted(future.report["reason"] for future in futures)
    assert reasons == ["cancelled"] * 3 + ["stopped"] * 2


def test_instead_of_terminate(tmp_path):
    """Process.terminate() leaves the children of the worker running. cancel() ends them."""
    with executor(max_workers=1) as pool:
        future = pool.submit(note_and_sleep, str(tmp_path / "x"), 100)
        worker, child = pids(str(tmp_path / "x"))
        assert alive(worker) and alive(child)
        assert future.cancel()
        assert not alive(worker) and not alive(child)
        assert future.cancelled() and pool.submit(divide, 4, 2).result() == 2


def test_instead_of_an_event(tmp_path):
    """A worker that would have to check an Event to be cancelled, and does not. The timeout ends it."""
    with executor(max_workers=1, timeout=6, grace=0.5) as pool:
        with pytest.raises(JobFailed) as failed:
            pool.submit(note_and_sleep, str(tmp_path / "x"), 100).result()
        assert failed.value.report["reason"] == "deadline"
        assert not any(alive(pid) for pid in pids(str(tmp_path / "x")))


def test_a_killed_program_leaves_nothing(tmp_path):
    path = str(tmp_path / "x")
    script = (
        f"import sys; sys.path[:0] = [{os.path.dirname(__file__)!r}]\n"
        "import test_pinfold_executor as t\n"
        f"t.executor(max_workers=1).submit(t.note_and_sleep, {path!r}, 100).result()"
    )
    program = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PINFOLD": PINFOLD})
    both = pids(path)
    program.kill()
    program.wait()
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in both):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "soon", [1]])
def test_a_refused_call_does_not_hang(timeout):
    with executor(max_workers=1, timeout=timeout) as pool:
        with pytest.raises(JobFailed) as failed:
            pool.submit(divide, 4, 2).result(timeout=20)
        assert failed.value.report["reason"] == "refused"


def die_with_a_pool(path):
    """Starts workers that keep the pipe to pinfold open, and submits a call. The test kills this process."""
    from concurrent.futures import ProcessPoolExecutor

    pool = executor(max_workers=1)
    workers = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
    list(workers.map(divide, [6, 8], [2, 4]))
    with open(path + ".workers.new", "w") as file:
        file.write(" ".join(str(pid) for pid in workers._processes))
    os.rename(path + ".workers.new", path + ".workers")
    pool.submit(note_and_sleep, path, 100).result()


def test_workers_that_keep_the_pipe_open(tmp_path):
    path = str(tmp_path / "x")
    script = (
        f"import sys; sys.path[:0] = [{os.path.dirname(__file__)!r}]\n"
        f"import test_pinfold_executor as t; t.die_with_a_pool({path!r})"
    )
    program = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PINFOLD": PINFOLD})
    workers, both = pids(path + ".workers"), pids(path)
    try:
        assert all(alive(pid) for pid in workers + both)
        program.kill()
        program.wait()
        assert any(alive(pid) for pid in workers)
        deadline = time.monotonic() + 20
        while any(alive(pid) for pid in both):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        program.kill()
        for pid in workers:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
