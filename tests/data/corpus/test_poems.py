"""Cleaning, labelling and sampling of poems."""

from __future__ import annotations

import pytest

from openm6.data.corpus.poems import Poem, clean, form_of, sample

QUATRAIN = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (QUATRAIN, "五绝"),
        (QUATRAIN * 2, "五律"),
        ("两个黄鹂鸣翠柳，一行白鹭上青天。窗含西岭千秋雪，门泊东吴万里船。", "七绝"),
        ("两个黄鹂鸣翠柳，一行白鹭上青天。窗含西岭千秋雪，门泊东吴万里船。" * 2, "七律"),
        (QUATRAIN * 3, "古"),
        ("前不见古人，后不见来者。念天地之悠悠，独怆然而涕下。", "古"),
    ],
)
def test_forms_are_counted(text: str, form: str) -> None:
    assert form_of(text) == form
    assert form_of(text, ci=True) == "词"


def test_a_clean_poem_is_kept_as_it_is() -> None:
    assert clean("静夜思", "李白", "唐", QUATRAIN) == Poem("静夜思", "李白", "唐", "五绝", QUATRAIN)


@pytest.mark.parametrize(
    ("title", "author", "text"),
    [
        ("静夜思", "李白", QUATRAIN.replace("月", "□")),
        ("静夜思", "李白", QUATRAIN.replace("月", "囗")),
        ("静夜思", "李白", QUATRAIN + "（一作山月。）"),
        ("静夜思", "李白", QUATRAIN.replace("举", "輙")),
        ("静夜思", "李白", QUATRAIN.rstrip("。")),
        ("静夜思", "李白", "床前明月光，疑是地上霜。"),
        ("静夜思", "李白", QUATRAIN * 6),
        ("静夜思", "李白", ""),
        ("静夜思（其一）", "李白", QUATRAIN),
        ("秦楼月・忆秦娥", "李白", QUATRAIN),
        ("夜" * 21, "李白", QUATRAIN),
        ("静夜思", "王炎2", QUATRAIN),
        ("静夜思", "", QUATRAIN),
    ],
)
def test_unfit_poems_are_left_out(title: str, author: str, text: str) -> None:
    assert clean(title, author, "唐", text) is None


def poems(count: int) -> list[Poem]:
    digits = "零一二三四五六七八九"
    return [Poem("题", "某", "唐", "五绝", "".join(digits[int(d)] for d in str(i))) for i in range(count)]


def test_sampling_keeps_to_the_quotas_and_ignores_order() -> None:
    many = poems(50)
    chosen = sample(iter(many), {("唐", "五绝"): 7})
    assert len(chosen) == 7
    assert chosen == sample(iter(reversed(many)), {("唐", "五绝"): 7})
    assert set(chosen) <= set(sample(iter(many), {("唐", "五绝"): 20}))


def test_a_form_without_a_quota_is_dropped() -> None:
    assert sample(iter(poems(5)), {("宋", "词"): 10}) == []


def test_of_equal_texts_the_first_stays() -> None:
    first, second = Poem("甲", "某", "唐", "五绝", QUATRAIN), Poem("乙", "某", "宋", "五绝", QUATRAIN)
    assert sample(iter([first, second]), {("唐", "五绝"): 5, ("宋", "五绝"): 5}) == [first]
