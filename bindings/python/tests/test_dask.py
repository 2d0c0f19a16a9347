"""Commands on a cluster of Dask: a scheduler and two workers, each a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pinfold
import pytest
from support import BOUND, TREE, all_gone, pids, until

distributed = pytest.importorskip("distributed")
import pinfold.dask  # noqa: E402


class Cluster:
    """A scheduler and workers as separate programs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "spawn"}
        file = directory / "scheduler.json"
        common = ["--scheduler-file", str(file)]
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *common)
        self.workers = [
            self.start("worker", "--no-nanny", "--nthreads", "2", "--no-dashboard", "--name", name, *common)
            for name in ("one", "two")
        ]
        self.client = distributed.Client(scheduler_file=str(file), set_as_default=False, timeout=BOUND)
        self.client.wait_for_workers(2, timeout=BOUND)
        self.address = self.client.scheduler.address

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with open(self.directory / "log", "ab") as log:
            command = [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]]
            return subprocess.Popen(command, cwd=self.directory, stdout=log, stderr=log, env=self.environment)

    def end(self) -> None:
        self.client.close()
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.end()


def test_results(cluster: Cluster) -> None:
    future = pinfold.dask.run(cluster.client, "cat; echo err >&2; exit 3", input=b"in", options={"shell": True})
    done = future.result(timeout=BOUND)
    assert (done.stdout, done.stderr, done.returncode) == (b"in", b"err\n", 3)
    assert done.report["reason"] == "exited"
    futures = [pinfold.dask.run(cluster.client, ["echo", str(number)]) for number in range(100)]
    assert [int(done.stdout) for done in cluster.client.gather(futures)] == list(range(100))


def test_errors(cluster: Cluster) -> None:
    with pytest.raises(FileNotFoundError):
        pinfold.dask.run(cluster.client, ["/nonexistent/program"]).result(timeout=BOUND)
    with pytest.raises(pinfold.CalledProcessError):
        pinfold.dask.run(cluster.client, ["false"], check=True).result(timeout=BOUND)
    with pytest.raises(pinfold.TimeoutExpired):
        pinfold.dask.run(cluster.client, ["sleep", "1000"], timeout=0.2).result(timeout=BOUND)
    with pytest.raises(pinfold.RequestError):
        limits = {"limits": {"memory": "512M"}}
        pinfold.dask.run(cluster.client, ["true"], options=limits).result(timeout=BOUND)
    with pytest.raises(ValueError, match="timeout"):
        pinfold.dask.run(cluster.client, ["true"], timeout=-1)


def test_cancel_ends_the_tree(cluster: Cluster, tmp_path: Path) -> None:
    future = pinfold.dask.run(cluster.client, TREE.format(tmp_path / "x"), options={"shell": True})
    tree = pids(tmp_path / "x")
    future.cancel()
    until(lambda: all_gone(tree), "the end of the job")


class Served:
    """`python -m pinfold.dask serve`."""

    def __init__(self, cluster: Cluster) -> None:
        command = [sys.executable, "-m", "pinfold.dask", "serve", cluster.address]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.hello = self.event()

    def send(self, **request: Any) -> None:
        self.stdin.write(json.dumps(request).encode() + b"\n")
        self.stdin.flush()

    def event(self) -> dict[str, Any]:
        # If no event comes, the timer kills the process, so that the test does not hang.
        timer = threading.Timer(BOUND, self.process.kill)
        timer.start()
        line = self.stdout.readline()
        timer.cancel()
        assert line, "the events have ended"
        event: dict[str, Any] = json.loads(line)
        return event

    def until(self, kind: str, name: str) -> list[dict[str, Any]]:
        events = [self.event()]
        while (events[-1]["event"], events[-1]["id"]) != (kind, name):
            events.append(self.event())
        return events


def test_the_protocol(cluster: Cluster, tmp_path: Path) -> None:
    served = Served(cluster)
    assert served.hello["event"] == "hello" and served.hello["workers"] == 4
    served.send(op="submit", id="a", job={"command": ["sh", "-c", "echo hi; exit 3"]}, data=[1])
    events = served.until("done", "a")
    assert [event["line"] for event in events if event["event"] == "output"] == ["hi"]
    last = events[-1]
    assert (last["request"], last["success"], last["attempts"], last["data"]) == (1, False, 1, [1])
    assert last["report"]["main"] == {"exited": 3}
    served.send(op="submit", id="b", job={"command": ["true"], "timeout": -1})
    assert "negative" in served.until("error", "b")[-1]["message"]
    served.send(op="cancel", id="b")
    assert served.event()["code"] == "no_such_job"

    # Four jobs run, and others wait.
    command = ["sh", "-c", TREE.format(tmp_path / "$0")]
    for number in range(8):
        served.send(op="submit", id=str(number), job={"command": [*command, str(number)]})
    until(lambda: len(list(tmp_path.iterdir())) == 4 and all(p.suffix == "" for p in tmp_path.iterdir()), "four run")
    running = [path.name for path in tmp_path.iterdir()]
    trees = [pid for path in tmp_path.iterdir() for pid in pids(path)]
    waiting = [str(number) for number in range(8) if str(number) not in running]
    # The waiting jobs first: a job that is cancelled makes room for another one.
    for names, reason in ((waiting, "cancelled"), (running, "stopped")):
        for name in names:
            served.send(op="cancel", id=name)
        done = {}
        while len(done) < 4:
            event = served.event()
            if event["event"] == "done":
                done[event["id"]] = event
        assert sorted(done) == sorted(names) and all(event["cancelled"] for event in done.values())
        assert {event["report"]["reason"] for event in done.values()} == {reason}
    assert all_gone(trees)
    served.send(op="submit", id="c", job={"command": [*command, "c"]})
    tree = pids(tmp_path / "c")
    served.stdin.close()
    assert served.until("done", "c")[-1]["cancelled"] and all_gone(tree)
    assert served.process.wait(BOUND) == 0


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_the_end_of_the_client_ends_the_jobs(cluster: Cluster, tmp_path: Path, how: str) -> None:
    served = Served(cluster)
    served.send(op="submit", id="a", job={"command": ["sh", "-c", TREE.format(tmp_path / "x")]})
    tree = pids(tmp_path / "x")
    served.process.send_signal(getattr(signal, how))
    served.process.wait(BOUND)
    until(lambda: all_gone(tree), "the end of the job")


def test_a_killed_worker(cluster: Cluster, tmp_path: Path) -> None:
    """Nothing of its job is left, and the job runs on the other worker. This test is the last one with two workers."""
    served = Served(cluster)
    served.send(op="submit", id="a", job={"command": ["sh", "-c", TREE.format(tmp_path / "x$PPID")]})
    served.send(op="submit", id="b", job={"command": ["sh", "-c", f"echo > {tmp_path}/b; sleep 1000"]})
    until(lambda: any(path.name.startswith("x") and path.suffix == "" for path in tmp_path.iterdir()), "the job runs")
    (first,) = [path for path in tmp_path.iterdir() if path.name.startswith("x") and path.suffix == ""]
    tree = pids(first)
    (address,) = [
        worker for worker, tasks in cluster.client.processing().items() if any(task.endswith("/1") for task in tasks)
    ]
    pid = cluster.client.run(os.getpid, workers=[address])[address]
    os.kill(pid, signal.SIGKILL)
    until(lambda: all_gone(tree), "the end of the job on the killed worker")
    until(lambda: len([p for p in tmp_path.iterdir() if p.name.startswith("x")]) == 2, "the job runs elsewhere")
    (second,) = [path for path in tmp_path.iterdir() if path.name.startswith("x") and path != first]
    again = pids(second)
    # The scheduler is killed: the workers end, and with them the jobs.
    cluster.scheduler.kill()
    until(lambda: all_gone(again), "the end of the jobs of a cluster without a scheduler")
    served.process.kill()
    served.process.wait()
