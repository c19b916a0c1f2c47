"""The one place that touches the import path, and what several tests start from."""
import os
import sys

import pytest

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, PROJECT)


@pytest.fixture(scope="session")
def real():
    """The folder of real recordings and data beside the project; tests that need it are skipped without it."""
    folder = os.path.join(os.path.dirname(PROJECT), "shared", "real")
    if not os.path.isdir(folder):
        pytest.skip(f"no real recordings at {folder}")
    return folder
