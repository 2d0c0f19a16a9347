"""pinfold.asyncio does what asyncio's subprocesses do, and ends all processes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from pinfold.asyncio import PIPE, create_subprocess_exec, create_subprocess_shell
from support import BOUND, TREE, all_gone, pids


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, BOUND))


def test_output() -> None:
    async def main() -> None:
        process = await create_subprocess_shell("echo out; echo err >&2; exit 3", stdout=PIPE, stderr=PIPE)
        assert await process.communicate() == (b"out\n", b"err\n")
        assert process.returncode == 3 and process.report is not None and process.report["reason"] == "exited"

    run(main())


def test_lines_and_input() -> None:
    async def main() -> None:
        process = await create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None and process.stdout is not None
        for number in range(3):
            process.stdin.write(b"%d\n" % number)
            assert await process.stdout.readline() == b"%d\n" % number
        data = b"x" * 3_000_000
        assert await process.communicate(data) == (data, None)
        assert await process.wait() == 0

    run(main())


def test_a_timeout_ends_the_tree(tmp_path: Path) -> None:
    async def main() -> None:
        process = await create_subprocess_shell(TREE.format(tmp_path / "x"))
        tree = await asyncio.to_thread(pids, tmp_path / "x")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), 0.1)
        assert process.returncode is None
        process.terminate()
        assert await process.wait() == -signal.SIGTERM and all_gone(tree)

    run(main())


def test_many_at_once_and_errors() -> None:
    async def one(number: int) -> int:
        process = await create_subprocess_exec("echo", str(number), stdout=PIPE)
        return int((await process.communicate())[0] or b"")

    async def main() -> None:
        assert await asyncio.gather(*map(one, range(40))) == list(range(40))
        with pytest.raises(FileNotFoundError):
            await create_subprocess_exec("/nonexistent/program")

    run(main())
