"""What reference code gave for the same inputs (shared/parity, beside the project); without it a test is skipped."""
import json
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"
PARITY = SHARED / "parity"


def reference(path):
    """Return a path; skip the test if nothing is there."""
    if not Path(path).exists():
        pytest.skip(f"no reference at {path}")
    return path


def lines(path):
    """Return the values of a file of JSON lines; skip the test without the file."""
    with open(reference(path), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def vectors(name, **wanted):
    """Return the lines of a file in shared/parity, of which `wanted` are values."""
    chosen = [v for v in lines(PARITY / name) if all(v.get(key) == value for key, value in wanted.items())]
    assert chosen
    return chosen
