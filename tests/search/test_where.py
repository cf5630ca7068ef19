"""Filters: what they say, what they refuse, and that both stores' words mean the same."""

from __future__ import annotations

import pytest

from openm6.search.where import Condition, Group, Kind, negated, parse_where

COLUMNS: dict[str, Kind] = {"category": "text", "price": "number", "sold out": "flag", "产地": "text"}


def test_and_binds_closer_than_or_and_brackets_bind_closest() -> None:
    dress, cheap = Condition("category", "=", "dress"), Condition("price", "<", 300.0)
    sold = Condition("sold out", "=", True)
    assert parse_where("category = 'dress' and price < 300", COLUMNS) == Group("and", (dress, cheap))
    flat = parse_where("category = 'dress' or price < 300 and \"sold out\" = true", COLUMNS)
    assert flat == Group("or", (dress, Group("and", (cheap, sold))))
    held = parse_where("(category = 'dress' OR price<300) AND `sold out` = TRUE", COLUMNS)
    assert held == Group("and", (Group("or", (dress, cheap)), sold))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("产地 == '杭州'", Condition("产地", "=", "杭州")),
        ("category <> 'it''s'", Condition("category", "!=", "it's")),
        ("price >= -1.5e2", Condition("price", ">=", -150.0)),
        ("price in (1, 2,3)", Condition("price", "in", (1.0, 2.0, 3.0))),
        ("category not in ('a')", Condition("category", "not in", ("a",))),
        ("category like 'dre%'", Condition("category", "like", "dre%")),
        ("not category like 'dre%'", Condition("category", "not like", "dre%")),
        ("price is null", Condition("price", "is null")),
        ("not not price is not null", Condition("price", "is not null")),
    ],
)
def test_every_condition(text: str, wanted: Condition) -> None:
    assert parse_where(text, COLUMNS) == wanted
    assert negated(negated(wanted)) == wanted


def test_a_negation_moves_down_to_the_conditions() -> None:
    assert parse_where("not (category = 'dress' and (price < 3 or price is null))", COLUMNS) == Group(
        "or",
        (
            Condition("category", "!=", "dress"),
            Group("and", (Condition("price", ">=", 3.0), Condition("price", "is not null"))),
        ),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("categori = 'dress'", "no column 'categori'; did you mean 'category'?"),
        ("xyz = 1", "there are category, price, sold out, 产地"),
        ("price < 'cheap'", "column 'price' holds numbers, not 'cheap'"),
        ("category = 3", "column 'category' holds texts, not 3"),
        ("price like '3%'", "`like` is for texts"),
        ('"sold out" < true', "compare it with = or !="),
        ("category = dress", "expected a number or a 'text' for column 'category', not 'dress'"),
        ("category", "ends where a comparison should stand"),
        ("price <", "ends where a value should stand"),
        ("", "ends where a column should stand"),
        ("and = 3", "expected a column, not 'and'"),
        ("(price < 3", "expected ')', not the end"),
        ("price < 3 price", "did not expect 'price'"),
        ("price between 1 and 2", "expected =, !=, <, <=, >, >=, in, like or is after 'price'"),
        ("price not < 3", "expected =, !=, <, <=, >, >=, in, like or is after 'price'"),
        ("price < 3; drop table items", "cannot read '; drop table items'"),
        ("category = 'open", "a quote inside it is doubled, as in 'O''Brien'"),
        ("category = 'O'Brien'", "a quote inside it is doubled, as in 'O''Brien'"),
        ("category in ('a', 'O'Brien')", "a quote inside it is doubled, as in 'O''Brien'"),
        ("category = 'it's' and price < 3", "a quote inside it is doubled, as in 'O''Brien'"),
        ("(" * 3000 + "price < 3", "nested too deeply"),
        ("not " * 3000 + "price < 3", "nested too deeply"),
        ("price < 1e999", "the number 1e999 is too large"),
    ],
)
def test_what_is_no_filter_is_told_why(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="the filter ") as error:
        parse_where(text, COLUMNS)
    assert words in str(error.value)
