"""Three programs for the standard library, with only their imports changed, end at their deadline and leave nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import programs
import pytest
from support import BOUND, running


@pytest.mark.parametrize("name", programs.NAMES)
def test_it_ends_at_its_deadline(name: str, tmp_path: Path) -> None:
    text = programs.source(name, "pinfold")
    assert text != programs.source(name, "standard")
    (tmp_path / "program.py").write_text(text)
    seconds = f"{100_000 + os.getpid()}"
    command = [sys.executable, str(tmp_path / "program.py"), "1", seconds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        output, errors = program.communicate(timeout=BOUND)
    assert running(["sleep", seconds]) == []
    if name == "executor":
        assert errors.rstrip().splitlines()[-1].startswith((b"TimeoutError", b"concurrent.futures._base.TimeoutError"))
    else:
        assert (output, program.returncode) == (b"-15\n", 0)
