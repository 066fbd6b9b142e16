"""The script that draws the figure of stability in docs/, on a few hundred digits."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent


def test_the_figure_is_drawn_again(tmp_path: Path) -> None:
    command = [sys.executable, "demo/trajectory.py", "--quick", "--out", str(tmp_path / "run.svg")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of the 10 nearest neighbors among 60 samples" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[0] == "| | epochs 1 and 3 | two seeds, untrained | two seeds, epoch 3 |"
    assert len(rows) == 1 + 4
    for figure in (tmp_path / "run.svg", ROOT / "docs" / "trajectory.svg"):
        words = [each.text for each in ElementTree.parse(figure).iter() if each.tag.endswith("text")]
        assert "nearest neighbors in common" in words
