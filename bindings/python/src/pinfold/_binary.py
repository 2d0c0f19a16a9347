"""Finds the pinfold program that the wheel has installed."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig


def find_pinfold() -> str:
    """Returns the path of the pinfold program.

    The environment variable PINFOLD, if it is set, contains the path. Otherwise the program is where pip installs the
    scripts of this package: beside the interpreter, in the scheme of the user, or in `bin` of a `--target` directory.

    Raises FileNotFoundError if none of these exists.
    """
    given = os.environ.get("PINFOLD")
    if given:
        found = shutil.which(given)
        if found is None:
            raise FileNotFoundError(f"PINFOLD={given} names no program that can be executed")
        return os.path.abspath(found)
    package = os.path.dirname(os.path.abspath(__file__))
    directories = [
        sysconfig.get_path("scripts"),
        os.path.dirname(sys.executable),
        sysconfig.get_path("scripts", scheme="posix_user"),
        os.path.join(os.path.dirname(package), "bin"),
    ]
    for directory in directories:
        path = os.path.join(directory, "pinfold")
        if os.access(path, os.X_OK):
            return path
    found = shutil.which("pinfold")
    if found is None:
        raise FileNotFoundError(
            f"the program pinfold is in none of {', '.join(directories)}, nor in PATH: "
            "install this package again, or set PINFOLD to its path"
        )
    return found
