"""`Popen` and `run` behave like those of subprocess, and end all processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pinfold
import pytest
from support import BOUND, TREE, all_gone, alive, pids, until


def test_output_and_returncode() -> None:
    done = pinfold.run(["sh", "-c", "echo out; echo err >&2; exit 3"], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)
    assert done.report is not None and done.report["reason"] == "exited"
    merged = pinfold.run("echo a; echo b >&2; echo c", shell=True, stdout=pinfold.PIPE, stderr=pinfold.STDOUT)
    assert merged.stdout == b"a\nb\nc\n"


def test_output_is_bytes() -> None:
    data = bytes(range(256)) * 1000 + b"\xff no newline"
    code = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 1000 + b'\\xff no newline')"
    assert pinfold.check_output([sys.executable, "-c", code]) == data


def test_output_to_a_file_and_inherited(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "file", "wb") as file:
        pinfold.run(["echo", "in a file"], stdout=file)
        pinfold.run(["echo", "inherited"])
        pinfold.run(["echo", "nowhere"], stdout=pinfold.DEVNULL)
    assert (tmp_path / "file").read_bytes() == b"in a file\n"
    until(lambda: capfd.readouterr().out == "inherited\n", "the output of the inherited stream")


def test_input(tmp_path: Path) -> None:
    assert pinfold.run(["cat"], input="text\n", text=True, capture_output=True).stdout == "text\n"
    assert pinfold.run(["cat"], capture_output=True).stdout == b""
    (tmp_path / "file").write_bytes(b"in a file\xff")
    with open(tmp_path / "file", "rb") as file:
        assert pinfold.check_output(["cat"], stdin=file) == b"in a file\xff"
    data = bytes(range(256)) * 20_000
    assert pinfold.run(["cat"], input=data, capture_output=True).stdout == data
    assert pinfold.run(["true"], input=data).returncode == 0  # It does not read its input.


def test_streams_one_piece_at_a_time() -> None:
    with pinfold.Popen(["cat"], stdin=pinfold.PIPE, stdout=pinfold.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        for piece in (b"a", b"bc\xff", b"\n"):
            process.stdin.write(piece)
            assert process.stdout.read(len(piece)) == piece
        process.stdin.close()
        assert process.wait(BOUND) == 0


def test_writing_to_a_command_that_has_closed_its_input() -> None:
    with pinfold.Popen(["sh", "-c", "exec <&-; sleep 1000"], stdin=pinfold.PIPE) as process:
        assert process.stdin is not None
        with pytest.raises(BrokenPipeError):
            while True:
                process.stdin.write(bytes(1 << 16))
                process.stdin.flush()
        process.kill()


def test_output_waits_for_its_reader() -> None:
    """This program holds at most one window of output that is not read. Other jobs continue."""
    count = 10 << 20
    script = f"head -c {count} /dev/zero; echo written >&2"
    with pinfold.Popen(script, shell=True, stdout=pinfold.PIPE, stderr=pinfold.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert pinfold.check_output(["echo", "goes on"]) == b"goes on\n"
        assert select.select([process.stderr], [], [], 0.3)[0] == []  # It cannot have written all.
        assert len(process.stdout.read()) == count
        assert process.stderr.read() == b"written\n"


def test_directory_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pinfold.check_output(["pwd"], cwd=tmp_path, text=True).strip() == str(tmp_path)
    pinfold.run(["true"])  # pinfold serve runs now. Later changes of the environment must reach the jobs too.
    monkeypatch.setenv("PINFOLD_TEST", "a\nb")
    assert pinfold.check_output(["printenv", "PINFOLD_TEST"]) == b"a\nb\n"
    monkeypatch.delenv("PINFOLD_TEST")
    assert pinfold.call(["printenv", "PINFOLD_TEST"]) == 1
    environment = {"PATH": os.environ["PATH"], "ONLY": "1"}
    lines = pinfold.check_output(["env"], env=environment, text=True).splitlines()
    assert "ONLY=1" in lines and not any(line.startswith("HOME=") for line in lines)


def test_timeout_ends_the_tree(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    with pytest.raises(subprocess.TimeoutExpired) as expired:
        pinfold.run("echo begun; " + TREE.format(path), shell=True, timeout=2, stdout=pinfold.PIPE)
    assert isinstance(expired.value, pinfold.TimeoutExpired)
    assert expired.value.output == b"begun\n"
    assert expired.value.report is not None and expired.value.report["reason"] == "deadline"
    assert all_gone(pids(path))


def test_wait_with_timeout_leaves_it_running() -> None:
    with pinfold.Popen(["sleep", "1000"]) as process:
        with pytest.raises(pinfold.TimeoutExpired):
            process.wait(timeout=0.1)
        with pytest.raises(pinfold.TimeoutExpired):
            process.communicate(timeout=0.1)
        assert process.poll() is None and alive(process.pid)
        process.kill()
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("how", ["kill", "terminate", "job_timeout"])
def test_the_end_does_not_wait_for_a_reader(how: str) -> None:
    """As with a pipe, a job that was ended is over even if no program reads its output."""
    process = pinfold.Popen(["yes"], stdout=pinfold.PIPE, job_timeout=1 if how == "job_timeout" else None)
    if how != "job_timeout":
        assert process.stdout is not None and process.stdout.readline() == b"y\n"
        getattr(process, how)()
    assert process.wait(BOUND) < 0
    assert process.stdout is not None and process.stdout.read(2) == b"y\n"
    process.stdout.close()


def test_terminate_stops_the_tree(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    process = pinfold.Popen(TREE.format(path), shell=True)
    tree = pids(path)
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    assert all_gone(tree)


def test_terminate_kills_after_the_grace_period() -> None:
    code = "trap '' TERM; echo ready; while :; do sleep 1000; done"
    process = pinfold.Popen(["sh", "-c", code], stdout=pinfold.PIPE, grace=0.2)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.terminate()
    assert process.wait(BOUND) == -signal.SIGKILL
    process.stdout.close()


def test_a_signal_to_the_command() -> None:
    process = pinfold.Popen(["sh", "-c", "trap 'exit 7' USR1; echo ready; while :; do sleep 0.1; done"], stdout=-1)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.wait(BOUND) == 7
    with pytest.raises(ValueError):
        process.send_signal(1000)
    process.stdout.close()


def test_a_program_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        pinfold.run(["/nonexistent/program"])
    assert missing.value.filename == "/nonexistent/program"
    (tmp_path / "data").write_text("no program")
    with pytest.raises(PermissionError):
        pinfold.Popen([str(tmp_path / "data")])


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "soon", [1]])
def test_an_invalid_timeout(timeout: float) -> None:
    for call in (pinfold.run, pinfold.call, pinfold.check_output):
        with pytest.raises(ValueError, match="timeout"):
            call(["true"], timeout=timeout)
    with pinfold.Popen(["sleep", "1000"]) as process:
        with pytest.raises(ValueError, match="timeout"):
            process.wait(timeout)
        process.kill()


def test_what_is_not_supported() -> None:
    with pytest.raises(ValueError, match="preexec_fn"):
        pinfold.Popen(["true"], preexec_fn=os.setsid)
    with pytest.raises(ValueError, match="not UTF-8"):
        pinfold.run([b"echo", b"\xff"])
    with pytest.raises(pinfold.RequestError, match="submit: .*--controllers memory") as refused:
        pinfold.run(["true"], limits={"memory": "512M"})
    assert refused.value.request["job"]["limits"] == {"memory": "512M"}


def test_check() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        pinfold.run("echo why; exit 2", shell=True, check=True, stdout=pinfold.PIPE)
    assert isinstance(failed.value, pinfold.CalledProcessError)
    assert (failed.value.returncode, failed.value.stdout) == (2, b"why\n")


def program(code: str) -> subprocess.Popen[bytes]:
    """Starts another program that uses pinfold."""
    code = "import os, pinfold, signal, sys\n" + code
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize("end", ["os._exit(1)", "sys.exit()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_nothing_outlives_the_program(tmp_path: Path, end: str) -> None:
    path = tmp_path / "pids"
    with program(f"pinfold.Popen({TREE.format(path)!r}, shell=True); input(); {end}") as host:
        tree = pids(path)
        assert not all_gone(tree)
        host.communicate(b"\n", timeout=BOUND)
    until(lambda: all_gone(tree), "the end of the job")


def test_an_interrupt_ends_the_tree(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    with program(f"pinfold.run({TREE.format(path)!r}, shell=True)") as host:
        tree = pids(path)
        host.send_signal(signal.SIGINT)
        assert host.wait(BOUND) != 0
        until(lambda: all_gone(tree), "the end of the job")


def test_a_forked_child_has_its_own_pinfold() -> None:
    pinfold.run(["true"])
    pid = os.fork()
    if pid == 0:
        os._exit(0 if pinfold.check_output(["echo", "child"]) == b"child\n" else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert pinfold.check_output(["echo", "parent"]) == b"parent\n"


def test_many_at_once() -> None:
    begun = [pinfold.Popen(["sh", "-c", f"echo {number}"], stdout=pinfold.PIPE) for number in range(50)]
    assert [int(process.communicate()[0]) for process in begun] == list(range(50))


def test_the_end_of_pinfold_fails_the_job() -> None:
    code = """
    from pinfold import _serve
    process = pinfold.Popen(["sleep", "1000"])
    os.kill(_serve.current().pid, signal.SIGKILL)
    try:
        process.wait()
    except pinfold.ServeEnded:
        print("ended", pinfold.run(["true"]).returncode)
    """
    with program("if True:\n" + code) as host:
        assert host.communicate(timeout=BOUND)[0] == b"ended 0\n"
