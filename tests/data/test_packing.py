import pytest
from hypothesis import given
from hypothesis import strategies as st

from openm6.data.packing import pack

problems = st.integers(1, 64).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(0, capacity), max_size=60), st.just(capacity))
)


@given(problems)
def test_nothing_is_lost_and_no_row_overflows(problem):
    lengths, capacity = problem
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)


@given(problems)
def test_order_is_stable(problem):
    rows = pack(*problem)
    assert all(row == sorted(row) and row for row in rows)
    assert rows == sorted(rows)
    assert rows == pack(*problem)


@given(problems)
def test_no_two_rows_fit_into_one(problem):
    lengths, capacity = problem
    filled = sorted(sum(lengths[index] for index in row) for row in pack(lengths, capacity))
    assert len(filled) < 2 or filled[0] + filled[1] > capacity


def test_takes_the_row_that_fits_best():
    # After 7, 6 and 5 have opened rows of 10, the 3 belongs beside the 7, the 4 beside the 6.
    assert pack([3, 7, 4, 6, 5], 10) == [[0, 1], [2, 3], [4]]
    assert pack([], 8) == []


@pytest.mark.parametrize(
    ("lengths", "capacity", "names"),
    [([3, 9], 8, "sequence 1 is 9"), ([-1], 8, "-1"), ([1], 0, "at least 1")],
)
def test_refuses_what_cannot_be_packed(lengths, capacity, names):
    with pytest.raises(ValueError, match=names):
        pack(lengths, capacity)
