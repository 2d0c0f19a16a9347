"""Tasks of Celery in a real worker (prefork), with the broker and the results in files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import BOUND, all_gone, pids, until

pytest.importorskip("celery")

APPLICATION = """
import os, subprocess, time
import celery, pinfold.celery

directory = os.environ["DIRECTORY"]
app = celery.Celery("application", broker="filesystem://", backend=f"file://{directory}/results")
app.conf.update(
    broker_transport_options={
        "data_folder_in": f"{directory}/data", "data_folder_out": f"{directory}/data",
        "control_folder": f"{directory}/control",
    },
    broker_connection_retry_on_startup=True,
)

@app.task(base=pinfold.celery.Task, bind=True)
def add(self, a, b):
    return [a + b, self.request.id, os.getppid()]

@app.task(base=pinfold.celery.Task)
def divide(a, b):
    return a / b

@app.task(base=pinfold.celery.Task)
def hang(path):
    child = subprocess.Popen(["setsid", "sleep", "1000"])
    with open(path + ".new", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.rename(path + ".new", path)
    try:
        time.sleep(1000)
    finally:
        open(path + ".finally", "w").close()
"""


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("celery")
    for name in ("data", "control", "results"):
        (directory / name).mkdir()
    (directory / "pinfold_test_application.py").write_text(APPLICATION)
    os.environ["DIRECTORY"] = str(directory)
    sys.path.insert(0, str(directory))
    import pinfold_test_application

    yield pinfold_test_application
    sys.path.remove(str(directory))


@pytest.fixture(autouse=True)
def worker(application: Any) -> Iterator[None]:
    """A worker for each test: after the kill of a process, billiard's pool may wait forever for a lock that the process held."""
    directory = os.environ["DIRECTORY"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([directory, *sys.path])}
    command = [sys.executable, "-m", "celery", "-A", "pinfold_test_application", "worker", "-c", "1"]
    command += ["--pool", "prefork", "--without-gossip", "--without-mingle", "-l", "WARNING"]
    with open(os.path.join(directory, "log"), "ab") as log:
        worker = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
    yield
    worker.kill()  # Its processes end with it.
    worker.wait()


def test_results_and_errors(application: Any) -> None:
    results = [application.add.delay(number, 1) for number in range(20)]
    values = [result.get(timeout=BOUND) for result in results]
    assert [value for value, _, _ in values] == list(range(1, 21))
    assert [name for _, name, _ in values] == [result.id for result in results]
    with pytest.raises(ZeroDivisionError):
        application.divide.delay(1, 0).get(timeout=BOUND)
    assert application.divide(6, 3) == 2  # A direct call.


def test_revoke_ends_the_tree(application: Any, tmp_path: Path) -> None:
    result = application.hang.delay(str(tmp_path / "x"))
    tree = pids(tmp_path / "x")
    result.revoke(terminate=True)
    until(lambda: all_gone(tree), "the end of the task")


def test_a_time_limit_ends_the_tree(application: Any, tmp_path: Path) -> None:
    application.hang.apply_async((str(tmp_path / "x"),), time_limit=3)
    tree = pids(tmp_path / "x")
    until(lambda: all_gone(tree), "the end of the task")


def test_a_soft_time_limit_runs_finally(application: Any, tmp_path: Path) -> None:
    from celery.exceptions import SoftTimeLimitExceeded

    result = application.hang.apply_async((str(tmp_path / "x"),), soft_time_limit=3)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=BOUND)
    assert all_gone(pids(tmp_path / "x")) and (tmp_path / "x.finally").exists()
