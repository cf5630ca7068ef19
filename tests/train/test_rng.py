import json
import random

import numpy as np
import torch

from openm6.train.rng import rng_state, set_rng_state


def draws():
    return (
        random.gauss(0, 1),
        np.random.normal(),
        np.random.rand(),
        torch.randn(3).tolist(),
        torch.rand(1).item(),
    )


def test_generators_go_on_where_they_were():
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    draws()  # leaves a spare Gaussian in Python's and in NumPy's generator
    state = json.loads(json.dumps(rng_state()))
    first = [draws() for _ in range(3)]
    assert [draws() for _ in range(3)] != first
    set_rng_state(state)
    assert [draws() for _ in range(3)] == first
