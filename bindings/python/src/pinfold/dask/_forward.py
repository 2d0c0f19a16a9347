"""The worker's side of `python -m pinfold.dask serve`: runs a job, and sends its events to the client."""

from __future__ import annotations

from typing import Any

from distributed import get_worker

from .._serve import Listener, Message, serve
from . import RUNNING, send


class _Forwarder(Listener):
    """Sends each event of a job to the topic of its client. Events of one worker keep their order."""

    def __init__(self, worker: Any, task: str) -> None:
        self._worker, self._task = worker, task

    def message(self, message: Message) -> None:
        send(self._worker, self._task, message)


def forward(spec: dict[str, Any], options: dict[str, Any]) -> bool:
    """The task: runs a job of the protocol, and returns whether it has succeeded.

    Raises RequestError for a job that pinfold refuses, and ServeEnded if pinfold is killed.
    """
    worker = get_worker()
    key = worker.get_current_task()
    if not RUNNING.begin(key):
        send(worker, key, {"event": "released"})
        return False
    try:
        job = serve().submit(spec, _Forwarder(worker, key), **options)
        RUNNING.set(key, job)
        job.ended.wait()
    finally:
        RUNNING.end(key)
    if job.error is not None:
        raise job.error
    return job.report is not None and job.report["exit_code"] == 0
