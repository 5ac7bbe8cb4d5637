"""The page on a pair of one's own: its example ends as printed, in as many lines as it says."""

from __future__ import annotations

import re
import subprocess
import sys

from parity_tests.results import ROOT

PAGE = (ROOT / "docs" / "parity-your-own.md").read_text(encoding="utf-8")
CODE = PAGE.split("```python\n")[1].split("```")[0]
PARTED, AGREED = (PAGE.split("```text\n")[place].split("```")[0] for place in (1, 2))
FIGURE = re.compile(r"\b\d[\d.]*e-\d+\b")


def _printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_the_example_ends_as_printed() -> None:
    """But for what rounding comes to, which another machine may have otherwise."""
    assert FIGURE.sub("0", _printed(CODE)) == FIGURE.sub("0", " ".join(PARTED.split()))


def test_with_the_cause_mended_it_agrees() -> None:
    mended = CODE.replace("strides=2)", "strides=2, padding=1)")
    assert mended != CODE
    printed = FIGURE.sub("0", _printed(mended))
    assert printed.endswith(FIGURE.sub("0", " ".join(AGREED.split())))


def test_it_takes_no_more_lines_than_it_says() -> None:
    lines = [line for line in CODE.split("# From here on.\n")[1].splitlines() if line.strip()]
    assert len(lines) == 11
    assert "after it eleven lines" in PAGE
