"""`python -m pinfold.dask serve tcp://HOST:PORT`: the protocol of `pinfold serve --stdio`, for the jobs of a cluster."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from distributed import Client

from ._engine import Engine


class _Stopped(SystemExit):
    """Raised when a signal requests the end of this program."""


def _on_signal(number: int, _frame: object) -> NoReturn:
    raise _Stopped(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pinfold.dask", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="read requests from standard input and write events to standard output")
    serve.add_argument("scheduler", help="the address of Dask's scheduler, such as tcp://10.0.0.1:8786")
    serve.add_argument(
        "--retries", type=int, default=0, help="how often Dask runs a job again whose task has failed (0 by default)"
    )
    arguments = parser.parse_args()
    # Standard output is for events alone.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        package = version("pinfold")
    except PackageNotFoundError:
        package = "0"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _on_signal)
    with Client(arguments.scheduler, set_as_default=False) as client:
        Engine(client, out, package, arguments.retries).serve(sys.stdin.buffer)


if __name__ == "__main__":
    main()
