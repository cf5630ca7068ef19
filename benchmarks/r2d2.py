"""How much does ranking add to pre-ranking, and each part of R2D2 to both? One JSON line.

    python benchmarks/r2d2.py --out benchmarks/results/r2d2.json
    python benchmarks/r2d2.py --seeds 1 --ablation-seeds       # one run of the recipe, no ablation

Trains recipe `r2d2-emoji`. Then, for fewer steps, it trains the recipe again and the recipe without one part each.
It measures all of them on `val`: unseen renditions of concepts that training has. Pictures are queries for their
name among the names of all concepts of the corpus, and names are queries for their pictures among val's, in English
and in Chinese. (Things with the same name count as the same.) Ranking judges each query's 32 best. Mean recall is
the mean of R@1, R@5 and R@10 in both directions and both languages. Finished runs are kept in `--work`, so a script
that is started again only does the rest.

    prerank_mean_recall, rank_mean_recall   by the recipe, mean over `seeds`
    rank_gain               their difference: mean, least, greatest
    prerank, rank           the recalls behind them, mean over seeds, by language and direction
    rank_encoders, rank_captions   mean recall when only the cross encoders, or only the model's captions, judge
    rank_text_image, rank_image_text   when only one of the two cross encoders judges
    shipped_mean_recall, shipped_rank_mean_recall   of the shipped model, with which the recipe begins; it ranks by
                            its captions alone
    pictures, texts         numbers of pictures, and of English names that they search
    ablation                by the part that is left out: runs of `ablation_steps` steps over `ablation_seeds` that
                            train the upper two layers too, so that every part has an effect. Mean recalls by
                            pre-ranking and by the cross encoders alone, one a seed, and minus_full, the
                            difference from `full` at the same seed: mean, least, greatest. All arms see the same
                            batches
    seconds                 time to train a run of the recipe, mean over seeds, on cores that did other work too;
                            for a resumed run, the time since then
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
from torch import Tensor

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import openm6
from benchmarks.common import emit, machine, rounded
from benchmarks.measures import normalise
from openm6.configs import RECIPES
from openm6.data.corpus import decode_image, load_emoji
from openm6.decode.pipeline import Pipeline
from openm6.decode.rank import By
from openm6.model.ranking import Ranking, States
from openm6.tasks.retrieval import mean_recall, recalls
from openm6.train.config import RunConfig
from openm6.train.loop import train
from openm6.train.recipe import load_recipe

RECIPE = RECIPES / "r2d2-emoji.yaml"
LANGUAGES = ("en", "zh")
CANDIDATES = 32
ARMS: dict[str, list[str]] = {
    "full": [],
    "hard_negatives": ["objective.hard_negatives=0.0"],
    "queue": ["objective.queue=0"],
    "target_guided": ["objective.target_guided=0.0"],
    "feature_guided": ["objective.feature_guided=false"],
    "masked_text": ["objective.masked=0.0", "objective.feature_guided=false"],
    "distillation": [
        "objective.target_guided=0.0",
        "objective.queue=0",
        "objective.feature_guided=false",
    ],
}
ABLATED = "frozen=[image, embed, slots.0, slots.1, slots.2, slots.3]"
Result = dict[str, Any]
Runner = Callable[[list[str], Path], Result]
Way = Literal["prerank", "rank"] | By


class Retrieval:
    """The pictures of `val` and the names in one language: what looks for what, and what belongs together."""

    def __init__(self, language: str):
        rows = load_emoji("val").to_pylist()
        self.pictures = [decode_image(row["image"]) for row in rows]
        mine = [row[f"name_{language}"] for row in rows]
        self.texts = _distinct(load_emoji()[f"name_{language}"].to_pylist())
        self.asked = _distinct(mine)
        self.same_IT = _same(mine, self.texts)
        self.same_TI = _same(self.asked, mine)

    def measure(self, m6: Pipeline, way: Way) -> dict[str, dict[str, float]]:
        if way == "prerank":
            image_to_text_IT = m6.match(self.pictures, self.texts)
            text_to_image_TI = m6.match(self.pictures, self.asked).T
        else:
            by: By | None = None if way == "rank" else way
            image_to_text_IT = m6.rank_texts(self.pictures, self.texts, candidates=CANDIDATES, by=by)
            text_to_image_TI = m6.rank_images(self.asked, self.pictures, candidates=CANDIDATES, by=by)
        return {
            "image_to_text": recalls(image_to_text_IT, self.same_IT),
            "text_to_image": recalls(text_to_image_TI, self.same_TI),
        }


def _distinct(names: Sequence[str]) -> list[str]:
    return list({normalise(name): name for name in names}.values())


def _same(queries: Sequence[str], among: Sequence[str]) -> np.ndarray:
    return np.array([[normalise(a) == normalise(b) for b in among] for a in queries])


def whole(found: dict[str, dict[str, dict[str, float]]]) -> float:
    """Mean recall over languages."""
    return mean(mean_recall(each["image_to_text"], each["text_to_image"]) for each in found.values())


def measure(m6: Pipeline, way: Way) -> dict[str, dict[str, dict[str, float]]]:
    return {language: Retrieval(language).measure(m6, way) for language in LANGUAGES}


@contextmanager
def alone(ranking: Ranking, scores: str) -> Iterator[None]:
    """One of the two encoders judges."""

    def log_odds(image: States, text: States) -> Tensor:
        scores_B2 = getattr(ranking(image, text), scores).float()
        return scores_B2[:, 1] - scores_B2[:, 0]

    ranking.log_odds = log_odds  # an attribute of the instance hides the method
    try:
        yield
    finally:
        del ranking.log_odds


def run(overrides: list[str], folder: Path, *, of_recipe: bool) -> Result:
    """Train (or go on), measure, and keep the result in the folder. Of a run of the recipe more is measured.

    Raises ValueError where the folder holds a run of another recipe.
    """
    kept, begun = folder / "result.json", time.perf_counter()
    train(load_recipe(RECIPE, overrides, RunConfig), folder)  # of a run that is done, this checks the recipe
    seconds = time.perf_counter() - begun
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    m6 = openm6.load(folder)
    assert m6.model.ranking is not None
    result: Result = {
        "seconds": seconds,
        "prerank": measure(m6, "prerank"),
        "rank_encoders": whole(measure(m6, "encoders")),
    }
    if of_recipe:
        result |= {"rank": measure(m6, "rank"), "rank_captions": whole(measure(m6, "captions"))}
        for name in ("text_image", "image_text"):
            with alone(m6.model.ranking, f"{name}_B2"):
                result[f"rank_{name}"] = whole(measure(m6, "encoders"))
    kept.write_text(json.dumps(result), encoding="utf-8")
    return result


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "least": min(values), "greatest": max(values)}


def of_recipe(results: Sequence[Result]) -> Result:
    """The figures of the recipe's runs, one a seed."""
    gains = [whole(each["rank"]) - whole(each["prerank"]) for each in results]
    return {
        **{f"{way}_mean_recall": mean(whole(each[way]) for each in results) for way in ("prerank", "rank")},
        "rank_gain": spread(gains),
        **{way: _means([each[way] for each in results]) for way in ("prerank", "rank")},
        **{
            f"rank_{name}": mean(each[f"rank_{name}"] for each in results)
            for name in ("encoders", "captions", "text_image", "image_text")
        },
        "seconds": mean(each["seconds"] for each in results),
    }


def _means(found: Sequence[Any]) -> Any:
    """The mean of every figure in equal trees."""
    first = found[0]
    return (
        {key: _means([each[key] for each in found]) for key in first}
        if isinstance(first, dict)
        else mean(found)
    )


def of_ablation(results: dict[str, dict[int, Result]]) -> Result:
    """By arm: mean recalls, and what they lose without the part. Arms have some seeds, `full` all of them."""
    worth: dict[str, Callable[[Result], float]] = {
        "prerank": lambda each: whole(each["prerank"]),
        "encoders": lambda each: each["rank_encoders"],
    }
    figures: Result = {}
    for arm, by_seed in results.items():
        figures[arm] = {"seeds": list(by_seed)}
        for name, of in worth.items():
            figures[arm][name] = [of(each) for each in by_seed.values()]
        if arm != "full":
            figures[arm]["minus_full"] = {
                name: spread([of(each) - of(results["full"][seed]) for seed, each in by_seed.items()])
                for name, of in worth.items()
            }
    return figures


def _words(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def main(argv: Sequence[str] | None = None, *, runner: Runner | None = None) -> Result:
    description = __doc__ or ""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/r2d2"), help="where runs are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the recipe")
    parser.add_argument("--ablation-seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--ablation-steps", type=int, default=50)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    asked = parser.parse_args(argv)
    recipe = [
        (runner or (lambda o, f: run(o, f, of_recipe=True)))([f"seed={seed}"], asked.work / f"recipe-{seed}")
        for seed in asked.seeds
    ]
    arms: dict[str, dict[int, Result]] = {arm: {} for arm in dict.fromkeys(["full", *asked.arms])}
    for seed in asked.ablation_seeds:
        for arm in arms:
            overrides = [*ARMS[arm], ABLATED, f"steps={asked.ablation_steps}", f"seed={seed}"]
            folder = asked.work / f"{arm}-{asked.ablation_steps}-{seed}"
            arms[arm][seed] = (runner or (lambda o, f: run(o, f, of_recipe=False)))(overrides, folder)
    shipped = openm6.load()
    english = Retrieval("en")
    figures = {
        "benchmark": "r2d2",
        "command": f"python benchmarks/r2d2.py --seeds {_words(asked.seeds)} "
        f"--ablation-seeds {_words(asked.ablation_seeds)} --ablation-steps {asked.ablation_steps}"
        + (f" --arms {' '.join(asked.arms)}" if asked.arms != list(ARMS) else ""),
        **of_recipe(recipe),
        "seeds": asked.seeds,
        "shipped_mean_recall": whole(measure(shipped, "prerank")),
        "shipped_rank_mean_recall": whole(measure(shipped, "rank")),
        "pictures": len(english.pictures),
        "texts": len(english.texts),
        "ablation_steps": asked.ablation_steps,
        "ablation_seeds": asked.ablation_seeds,
        "ablation": of_ablation(arms) if asked.ablation_seeds else {},
        "machine": machine(),
    }
    emit(rounded(figures), asked.out)
    return figures


if __name__ == "__main__":
    main()
