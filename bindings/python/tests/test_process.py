"""`Process` behaves like that of multiprocessing, and ends all descendants."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import signal
from pathlib import Path

import functions
import pinfold
import pytest
from support import BOUND, all_gone, alive, pids


def test_terminate_ends_the_tree(tmp_path: Path) -> None:
    process = pinfold.Process(target=functions.note_and_sleep, args=(str(tmp_path / "x"),))
    process.start()
    tree = pids(tmp_path / "x")
    assert process.is_alive() and process.exitcode is None and process.pid == tree[0]
    assert process in multiprocessing.active_children()
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM and not process.is_alive() and all_gone(tree)
    assert process.report is not None and process.report["reason"] == "stopped"
    process.close()


def test_terminate_runs_finally(tmp_path: Path) -> None:
    process = pinfold.Process(target=functions.with_finally, args=(str(tmp_path / "x"),))
    process.start()
    begun = pids(tmp_path / "x.begun")
    process.terminate()
    process.join()
    assert pids(tmp_path / "x.finally") == begun and process.exitcode == -signal.SIGTERM


def test_kill(tmp_path: Path) -> None:
    process = pinfold.Process(target=functions.ignore_sigterm, args=(str(tmp_path / "x"),))
    process.start()
    pids(tmp_path / "x")
    process.kill()
    assert multiprocessing.connection.wait([process.sentinel], BOUND) == [process.sentinel]
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_join_with_timeout(tmp_path: Path) -> None:
    process = pinfold.Process(target=functions.note_and_sleep, args=(str(tmp_path / "x"),), daemon=True)
    process.start()
    process.join(0.1)
    assert process.is_alive() and alive(process.pid or 0)
    process.terminate()
    process.join()


@pytest.mark.parametrize(("function", "arguments", "code"), [("exit_with", (3,), 3), ("fail", (), 1), ("pid", (), 0)])
def test_exitcode(function: str, arguments: tuple[int, ...], code: int) -> None:
    process = pinfold.Process(target=getattr(functions, function), args=arguments)
    process.start()
    process.join()
    assert process.exitcode == code


def test_events_queues_and_connections() -> None:
    event, queue = pinfold.Event(), pinfold.Queue()
    here, there = pinfold.Pipe()
    process = pinfold.Process(target=functions.wait_and_put, args=(event, queue, there))
    process.start()
    assert process.is_alive()
    here.send("ab")
    event.set()
    assert queue.get(timeout=BOUND) == process.pid
    assert here.poll(BOUND) and here.recv() == "abab"
    process.join()
    assert process.exitcode == 0


def test_what_cannot_be_pickled() -> None:
    process = pinfold.Process(target=lambda: None)
    with pytest.raises(Exception, match="pickle"):
        process.start()
