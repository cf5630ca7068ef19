"""The measures behind the quality figures, on cases whose value can be seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.measures import (
    apportion,
    bootstrap_interval,
    has_form,
    majority_accuracy,
    normalise,
    poem_lines,
    psnr,
    same,
)


def test_answers_are_compared_without_case_outer_space_and_composition() -> None:
    assert normalise(" Pi\u006e\u0303ata\n") == "piñata"
    assert same(["Red Apple ", "red  apple", "苹果"], ["red apple", "red apple", "苹果"]).tolist() == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", "五绝", True),
        ("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。", "七绝", False),
        ("白日依山尽，黄河入海流。欲穷千里目，更上一层。", "五绝", False),
        ("白日依山尽，黄河入海流。欲穷千里目。", "五绝", False),
        ("白日依山尽，黄河入海a。欲穷千里目，更上一层楼。", "五绝", False),
        ("朝辞白帝彩云间，千里江陵一日还。\n两岸猿声啼不住？轻舟已过万重山！", "七绝", True),
        ("白日依山尽，黄河入海流。" * 4, "五律", True),
        ("", "五绝", False),
    ],
)
def test_form(text: str, form: str, expected: bool) -> None:
    assert has_form(text, form) is expected


def test_punctuation_splits_lines() -> None:
    assert poem_lines("一、二；三？四！五，六。\n") == ["一", "二", "三", "四", "五", "六"]


def test_psnr_of_a_known_error() -> None:
    reference = np.full((4, 4, 3), 100, dtype=np.uint8)
    assert psnr(reference + np.uint8(10), reference) == pytest.approx(20 * np.log10(25.5))
    assert psnr(reference - np.uint8(10), reference) == pytest.approx(20 * np.log10(25.5))
    assert psnr(reference, reference) == 60.0
    with pytest.raises(ValueError, match=r"\(2, 4, 3\) cannot be compared"):
        psnr(reference[:2], reference)


def test_majority_knows_the_stratum() -> None:
    answers = ["yes", "no", "no", "是", "是", "不是"]
    assert majority_accuracy(answers, ["en"] * 3 + ["zh"] * 3) == pytest.approx(4 / 6)
    assert majority_accuracy(answers, ["all"] * 6) == pytest.approx(2 / 6)


def test_the_interval_is_of_clusters() -> None:
    hits = np.repeat([True, False], 50)
    low, high = bootstrap_interval(hits, list(range(100)))
    assert 0.38 < low < 0.45 and 0.55 < high < 0.62  # the normal approximation: 0.402 to 0.598
    assert bootstrap_interval(hits, [0] * 50 + [1] * 50) == (0.0, 1.0)
    assert bootstrap_interval(np.ones(5, dtype=bool), list("abcde")) == (1.0, 1.0)


@given(st.integers(0, 500), st.dictionaries(st.text(max_size=3), st.integers(1, 10**5), min_size=1))
def test_parts_sum_to_the_total_and_are_within_one_of_their_share(
    total: int, weights: dict[str, int]
) -> None:
    parts = apportion(total, weights)
    assert sum(parts.values()) == total
    for key, weight in weights.items():
        assert abs(parts[key] - total * weight / sum(weights.values())) < 1
