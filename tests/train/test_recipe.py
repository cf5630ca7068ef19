from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, model_validator

from openm6.train.recipe import dump_recipe, load_recipe


class Source(BaseModel):
    path: str
    weight: float = 1.0
    lang: Literal["en", "zh", "no"] = "en"


class AdamW(BaseModel):
    kind: Literal["adamw"] = "adamw"
    lr: float = Field(default=3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class Adafactor(BaseModel):
    kind: Literal["adafactor"] = "adafactor"
    lr: float = 1e-2
    clip: float = 1.0


class Giant(BaseModel):
    delink_at: float | Literal["trigger"] = 0.1
    units: int = 1


class Recipe(BaseModel):
    name: str
    steps: int = 100
    compile: bool = False
    out: Path = Path("runs")
    optimizer: Annotated[AdamW | Adafactor, Field(discriminator="kind")] = Field(default_factory=AdamW)
    giant: Giant | None = None
    data: list[Source] = []
    tasks: dict[str, float] = {}

    @model_validator(mode="after")
    def some_steps(self) -> "Recipe":
        if self.steps == 13:
            raise ValueError("thirteen steps bring bad luck")
        return self


@pytest.fixture
def recipe(tmp_path):
    def write(text: str, name: str = "r.yaml") -> Path:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


FULL = """
name: 快 start
steps: 2_000
optimizer: {kind: adafactor, lr: 3e-4}
data:
  - {path: a.jsonl, lang: no}
  - {path: b.jsonl, weight: .5}
tasks: {caption: 2, draw: 1e0}
"""


def test_a_recipe_with_overrides(recipe):
    config = load_recipe(
        recipe(FULL),
        [
            "optimizer.lr=1e-3",
            "data.1.weight=2",
            "giant.units=3",
            "out=runs/x=y",
            "compile=true",
            "tasks={write: 1}",
        ],
        Recipe,
    )
    assert config == Recipe(
        name="快 start",
        steps=2000,
        compile=True,
        out=Path("runs/x=y"),
        optimizer=Adafactor(lr=1e-3),
        giant=Giant(units=3),
        data=[Source(path="a.jsonl", lang="no"), Source(path="b.jsonl", weight=2.0)],
        tasks={"write": 1.0},
    )


def test_inheritance_merges_mappings_and_replaces_lists(recipe, tmp_path):
    (tmp_path / "deep").mkdir()
    recipe("name: root\nsteps: 7\ntasks: {caption: 1, ask: 2}\ndata: [{path: a}, {path: b}]", "root.yaml")
    recipe("base: ../root.yaml\ntasks: {ask: 3}", "deep/middle.yaml")
    config = load_recipe(recipe("base: deep/middle.yaml\nname: top\ndata: [{path: c}]"), [], Recipe)
    assert config == Recipe(name="top", steps=7, tasks={"caption": 1, "ask": 3}, data=[Source(path="c")])


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("name: a\nstps: 3", [], "{r}: unknown key 'stps'; did you mean 'steps'?"),
        ("nmae: a", [], "{r}: unknown key 'nmae'; did you mean 'name'?"),
        ("steps: 3", [], "{r}: the key 'name' is missing and has no default."),
        ("name: a\nlr: 3", [], "{r}: unknown key 'lr'; did you mean 'optimizer.lr'?"),
        (
            "name: a\ndata: [{path: b, wieght: 1}]",
            [],
            "{r}: unknown key 'data.0.wieght'; did you mean 'data.0.weight'?",
        ),
        (
            "name: a\noptimizer: {kind: adafactor, beta: 1}",
            [],
            "{r}: unknown key 'optimizer.beta'; known keys in 'optimizer' are kind, lr, clip.",
        ),
        ("name: a\ngiant: {unit: 1}", [], "{r}: unknown key 'giant.unit'; did you mean 'giant.units'?"),
        (
            "name: a\nzzz: 1",
            [],
            "{r}: unknown key 'zzz'; known keys are "
            "name, steps, compile, out, optimizer, giant, data, tasks.",
        ),
        ("name: a\nsteps: many", [], "{r}: 'steps' must be a valid integer, not \"many\"."),
        ("name: a\nsteps: '3'", [], "{r}: 'steps' must be a valid integer, not \"3\"."),
        ("name: a\nsteps: true", [], "{r}: 'steps' must be a valid integer, not true."),
        ("name: a\ncompile: yes", [], "{r}: 'compile' must be true or false, not \"yes\"."),
        ("name: 3", [], "{r}: 'name' must be a valid string, not 3."),
        ("name: a\ndata: {path: b}", [], '{r}: \'data\' must be a list, not {{"path": "b"}}.'),
        ("name: a\ngiant: 4", [], "{r}: 'giant' must be a mapping, not 4."),
        (
            "name: a\noptimizer: {lr: -1, kind: adamw}",
            [],
            "{r}: 'optimizer.lr' must be greater than 0, not -1.",
        ),
        (
            "name: a\ndata: [{path: b, lang: de}]",
            [],
            "{r}: 'data.0.lang' must be 'en', 'zh' or 'no', not \"de\".",
        ),
        (
            "name: a\ngiant: {delink_at: soon}",
            [],
            "{r}: 'giant.delink_at' must be a valid number or 'trigger', not \"soon\".",
        ),
        ("name: a\nsteps: 13", [], "{r}: thirteen steps bring bad luck."),
        (
            "name: a\nname: b",
            [],
            "{r}, line 2, column 1: "
            "this is not valid YAML: the key 'name' stands twice or is not plain text.",
        ),
        (
            "name: [a",
            [],
            "{r}, line 1, column 9: this is not valid YAML: expected ',' or ']', but got '<stream end>'.",
        ),
        (
            "name: !!binary aGk=",
            [],
            "{r}: a recipe holds only text, numbers, true, false, null, lists and mappings.",
        ),
        ("[1, 2]", [], "{r}: a recipe must be a mapping of keys to values, not [1, 2]."),
        ("", ["nam=a"], "the override 'nam=a' of {r}: unknown key 'nam'; did you mean 'name'?"),
        (
            "name: a",
            ["steps=x"],
            "the override 'steps=x' of {r}: 'steps' must be a valid integer, not \"x\".",
        ),
        (
            "name: a",
            ["optimizer={kind: adamw, lrr: 1}"],
            "the override 'optimizer={{kind: adamw, lrr: 1}}' of {r}: unknown key 'optimizer.lrr'; "
            "did you mean 'optimizer.lr'?",
        ),
        (
            "name: a\ndata: [{path: b}]",
            ["data.1.weight=2"],
            "the override 'data.1.weight=2' of {r}: "
            "'data' is a list of 1 entries, counted from 0; it has no '1'.",
        ),
        (
            "name: a",
            ["name.x=1"],
            "the override 'name.x=1' of {r}: 'name' is \"a\", not a mapping or a list.",
        ),
        ("name: a", ["steps"], "the override 'steps' of {r} must have the form key.subkey=value."),
        ("name: a", ["a..b=1"], "the override 'a..b=1' of {r} must have the form key.subkey=value."),
        (
            "name: a",
            ["data=[1"],
            "the override 'data=[1' of {r}, line 1, column 3: this is not valid YAML: "
            "expected ',' or ']', but got '<stream end>'.",
        ),
        (
            "base: none.yaml",
            [],
            "the recipe {d}/none.yaml, which {r} names as its base, cannot be read: "
            "No such file or directory.",
        ),
        ("base: r.yaml", [], "the recipe {r} is its own base (by way of {r}); remove one `base` key."),
        ("base: [r.yaml]", [], "{r}: 'base' must be the name of a recipe file, not [\"r.yaml\"]."),
    ],
)
def test_errors_are_one_sentence_that_tells_what_to_mend(recipe, text, overrides, message):
    path = recipe(text)
    with pytest.raises(ValueError) as caught:
        load_recipe(path, overrides, Recipe)
    assert type(caught.value) is ValueError
    assert str(caught.value) == message.format(r=path, d=path.parent)


def test_an_error_names_the_file_that_has_the_key(recipe):
    base = recipe("name: a\ngiant: {unitz: 3}", "base.yaml")
    with pytest.raises(ValueError) as caught:
        load_recipe(recipe("base: base.yaml\ngiant: {delink_at: 0.2}"), [], Recipe)
    assert str(caught.value).startswith(f"{base}: unknown key 'giant.unitz'")


def test_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match=r"the recipe .*none\.yaml cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml", [], Recipe)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.yaml is not UTF-8 text"):
        load_recipe(tmp_path / "latin.yaml", [], Recipe)


# Text that YAML would read as something else if it were not quoted.
tricky = st.sampled_from(
    ["3e-4", "1_0", "no", "yes", "true", "null", "~", "", "2024-01-01", "0x1f", "012", "=", "a: b"]
)
text = st.one_of(tricky, st.text(max_size=20))
number = st.floats(allow_nan=False)
sources = st.builds(Source, path=text, weight=number, lang=st.sampled_from(["en", "zh", "no"]))
optimizers = st.one_of(
    st.builds(AdamW, lr=st.floats(min_value=0, exclude_min=True), betas=st.tuples(number, number)),
    st.builds(Adafactor, lr=number, clip=number),
)
giants = st.builds(Giant, delink_at=st.one_of(number, st.just("trigger")), units=st.integers())
recipes = st.builds(
    Recipe,
    name=text,
    steps=st.integers().filter(lambda n: n != 13),
    compile=st.booleans(),
    out=st.sampled_from([Path("runs/a"), Path("3e-4"), Path("no")]),
    optimizer=optimizers,
    giant=st.none() | giants,
    data=st.lists(sources, max_size=3),
    tasks=st.dictionaries(text, number, max_size=3),
)


@given(config=recipes)
def test_what_is_dumped_loads_back_equal(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("recipe") / "config.yaml"
    dump_recipe(config, path)
    assert load_recipe(path, [], Recipe) == config
    assert [entry.name for entry in path.parent.iterdir()] == ["config.yaml"]


@given(value=number, position=st.integers(min_value=0, max_value=2))
def test_an_override_changes_that_value_alone(tmp_path_factory, value, position):
    path = tmp_path_factory.mktemp("recipe") / "config.yaml"
    config = Recipe(name="a", data=[Source(path=str(i)) for i in range(3)])
    dump_recipe(config, path)
    written = {float("inf"): ".inf", float("-inf"): "-.inf"}.get(value, repr(value))
    changed = load_recipe(path, [f"data.{position}.weight={written}"], Recipe)
    config.data[position].weight = value
    assert changed == config
