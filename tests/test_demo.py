"""The README's first command, on a few hundred digits."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_demo_runs_and_its_last_line_works(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    demo = [sys.executable, "demo/run.py", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(demo, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "wrong on purpose" in " ".join(done.stdout.split())
    assert "planted wrong labels" in " ".join(done.stdout.split())
    assert "An index of 240 digits" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 20_000
    assert (tmp_path / "neighbors.png").read_bytes().startswith(b"\x89PNG")
    program, *arguments = done.stdout.splitlines()[-1].split()
    assert program == ".venv/bin/kinsight"
    command = [sys.executable, "-m", "kinsight", *arguments, "--quiet"]
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.html").exists()
