import json
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.data.mixture import Mixture

weight_lists = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


class Counter:
    """A source of numbered records."""

    def __init__(self, name: str, end: int | None = None) -> None:
        self.name, self.end, self.n = name, end, 0

    def __next__(self) -> dict[str, object]:
        if self.n == self.end:
            raise StopIteration
        self.n += 1
        return {"id": f"{self.name}{self.n}"}

    def state_dict(self) -> dict[str, int]:
        return {"n": self.n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.n = state["n"]


def mixture(weights: list[float], seed: int) -> Mixture:
    return Mixture([Counter("abcdef"[index]) for index in range(len(weights))], weights, seed=seed)


@given(weight_lists, st.integers(0, 2**32))
def test_counts_track_the_weights_within_one(weights, seed):
    mixed = mixture(weights, seed)
    shares = [Fraction(weight).limit_denominator(10**6) for weight in weights]
    for step in range(1, 120):
        next(mixed)
        assert sum(mixed.counts) == step
        for count, share in zip(mixed.counts, shares, strict=True):
            assert abs(count - share / sum(shares) * step) < 1


@given(weight_lists, st.integers(0, 100), st.integers(0, 60))
def test_resumes_where_it_stood(weights, seed, k):
    unbroken = mixture(weights, seed)
    expected = [next(unbroken) for _ in range(k + 40)]
    first = mixture(weights, seed)
    assert [next(first) for _ in range(k)] == expected[:k]
    second = mixture(weights, seed)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [next(second) for _ in range(40)] == expected[k:]


def test_seed_decides_among_equals_and_nesting_works():
    starts = {next(mixture([1, 1, 1], seed))["id"] for seed in range(40)}
    assert starts == {"a1", "b1", "c1"}
    nested = Mixture([mixture([1, 1], 0), Counter("z")], [2, 1], seed=0)
    names = [next(nested)["id"][0] for _ in range(30)]
    assert (names.count("a"), names.count("b"), names.count("z")) == (10, 10, 10)


def test_ends_with_its_first_source():
    assert len(list(Mixture([Counter("a", end=3), Counter("b")], [1, 1], seed=1))) in (6, 7)


@pytest.mark.parametrize(
    "weights", [[], [1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [1.0, float("inf")]]
)
def test_refuses_weights_without_meaning(weights):
    with pytest.raises(ValueError, match="weight"):
        Mixture([Counter("a"), Counter("b")], weights, seed=0)


def test_refuses_the_state_of_other_weights():
    with pytest.raises(ValueError, match="weights"):
        mixture([1, 2], 0).load_state_dict(mixture([1, 3], 0).state_dict())
