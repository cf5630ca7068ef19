"""What every test gets: at most two threads, the same seeds, property tests that repeat exactly."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# One of several processes shares the cores with the others, and so do the processes that its tests start.
if shares := "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1 if shares else min(2, torch.get_num_threads()))

# Examples are derived from the test itself, so a failure on one machine is a failure on all. Timings of a
# shared machine say nothing about the code, hence no deadline.
settings.register_profile(
    "openm6",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("openm6")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
