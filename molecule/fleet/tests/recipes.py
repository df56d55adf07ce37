"""Runs the recipes of docs/clients.md, with the packages that they are for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from testing import PROJECT

RECIPES = PROJECT / "docs/clients"
ENVIRONMENTS = PROJECT / ".cache/clients"


def python_with(name: str) -> Path:
    """The interpreter of an environment with the packages of tests/clients/NAME.txt, made if it is not there.

    Args:
        name: of the requirements file.
    """
    requirements = PROJECT / f"tests/clients/{name}.txt"
    environment = ENVIRONMENTS / name
    python, stamp = environment / "bin/python", environment / "requirements.txt"
    wanted = requirements.read_text(encoding="utf-8")
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r", requirements]
        subprocess.run(pip, check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def run_recipe(command: list[str | Path], **environment: str) -> subprocess.CompletedProcess:
    """Runs a recipe in its directory, with no other address, key or authority than those given.

    Args:
        command: what to run.
        environment: OPENAI_BASE_URL and the other variables that recipes read.
    """
    # A machine may have an authority of its own for each program, which would win over SSL_CERT_FILE.
    kept = {name: value for name, value in os.environ.items() if not re.search("CA_BUNDLE|SSL|OPENAI", name)}
    return subprocess.run(
        command, cwd=RECIPES, env=kept | environment, capture_output=True, text=True, timeout=300, check=False
    )


def assert_says(run: subprocess.CompletedProcess, *patterns: str) -> None:
    """Fails unless a recipe ended well and printed all that is expected.

    Args:
        run: what ran.
        patterns: regular expressions.
    """
    assert run.returncode == 0, run.stdout + run.stderr
    missing = [pattern for pattern in patterns if not re.search(pattern, run.stdout)]
    assert not missing, run.stdout
