"""Shared fixtures: one thread and one seed for every test."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # reference.py, kinds.py and runs.py serve tests in all folders

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: idle threads wait busily


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
