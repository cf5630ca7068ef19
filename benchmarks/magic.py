"""Compares MAGIC with contrastive search, retrieval and gradient guidance on pictures of `val`; one JSON line.

    python benchmarks/magic.py --out benchmarks/results/magic.json
    python benchmarks/magic.py --limit 20 --gradient-captions 1                 # a look, not a result

Captions are descriptions such as "flat fluent drawing in brown, mammals: horse" (benchmarks/descriptions.py).
`train` knows every part of a `val` picture's description, but no text of `train` combines them, just as no caption
of COCO's test pictures is one of its training captions. Two models are trained here and kept in `--work`. The
teller (recipe `tell`) has read the descriptions of the training pictures and seen no picture. The guide (recipe
`match-begun`) is the shipped model, trained on to match those pictures with their descriptions: whole, begun, and
with a wrong word. All methods use the same guide and the same texts. MAGIC uses the settings of `TRIED` that do
best on pictures taken out of `train`. Neither of the two models was trained on these pictures (but the shipped
model was).

    cider_magic         mean CIDEr-D of MAGIC's captions, one description a reference
    cider_magic_paper   the same with the best of `PAPER`: one text, all of the k likeliest are candidates
    cider_contrastive   of contrastive search, which is MAGIC without the picture: one caption for all
    cider_retrieval     of the text that the guide likes best, among all texts that the teller has read
    cider_gradient      of gradient guidance, and `cider_magic_same` of MAGIC on the same few pictures; all pictures
                        together decide which words are rare
    scores              CIDEr with its 95 % interval (whole concepts resampled), BLEU-1 and -4, ROUGE-L, the share
                        of exact captions, and the shares with the right style, colour, kind or name
    magic_minus_retrieval  mean difference of CIDEr with its interval, picture by picture
    within_k            how often the right next token is among the teller's k likeliest
    tuning              CIDEr on the pictures taken out of `train`, for each setting tried and for retrieval
    withheld            the same methods when no text that teller and retrieval know has the name of a `val` picture
    seconds             per caption, one picture at a time; of MAGIC and of gradient guidance on the same pictures
    texts_read_gradient texts that the guide reads for a caption of gradient guidance
    speedup             the ratio of the seconds
    speedup_remembering the same when gradient guidance encodes no text of a picture twice
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import openm6
from benchmarks.bench import Picture, images, load_pictures, names
from benchmarks.common import Stopwatch, emit, hash_order, machine, rounded
from benchmarks.descriptions import PARTS, describe, parts, to_tune_on, write_pictures
from benchmarks.gradient_guided import GradientGuidance, gradient_guided
from benchmarks.measures import bootstrap_interval, normalise, same
from openm6.configs import RECIPES
from openm6.decode.decoder import Decoder
from openm6.decode.magic import Magic, magic_search
from openm6.decode.pipeline import BATCH, MAX_TEXT, Pipeline
from openm6.decode.tell import Remembering, match_logits, told_by
from openm6.tasks.caption_metrics import References, bleu, cider, rouge_l
from openm6.train.config import RunConfig
from openm6.train.loop import train
from openm6.train.recipe import load_recipe

PAPER = [Magic(k=45, alpha=alpha, beta=beta) for alpha in (0.0, 0.1) for beta in (1.0, 2.0, 4.0)]
TRIED = [
    *PAPER,
    *(replace(magic, plausible=plausible) for magic in PAPER for plausible in (0.01, 0.05)),
    *(Magic(k=45, plausible=0.01, beams=8, fluency=fluency) for fluency in (0.03, 0.1, 0.3)),
]
MAX_NEW = 20  # tokens of gradient guidance: a description's
# Pictures stand on white paper, and their colours and lines are in their descriptions.
GUIDE = ["mix.0.augment={outline: 0, grey: 0, background: 0, erase: 0.1}"]
Figures = dict[str, Any]


def trained(recipe: str, folder: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """The model of a recipe: trained now, or gone on with; one that is done has nothing left to do.

    Raises ValueError where the folder holds a run of another recipe.
    """
    print(f"training {folder.name} ...", file=sys.stderr, flush=True)
    train(load_recipe(RECIPES / f"{recipe}.yaml", list(overrides), RunConfig), folder)
    return openm6.load(folder, device="cpu")  # where gradient guidance computes, so that both are timed alike


def teller_of(texts: Sequence[str], folder: Path) -> Pipeline:
    path = folder.with_suffix(".jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return trained("tell", folder, [f"mix.0.data.path={path}"])


def guide_of(pictures: Sequence[Picture], folder: Path) -> Pipeline:
    path = folder.with_suffix(".parquet")
    if not path.is_file():
        write_pictures(pictures, path)
    return trained("match-begun", folder, [f"mix.0.data={{path: {path}}}", *GUIDE])


class Told:
    """A guide, a teller, the texts that the teller has read, and pictures with the captions they should get."""

    def __init__(
        self,
        guide: Pipeline,
        teller: Pipeline,
        texts: Sequence[str],
        pictures: Sequence[Picture],
        wanted: Sequence[str],
        memory: dict[str, Tensor],  # embeddings of texts by this guide, shared by all of its uses
    ):
        self.teller, self.texts = teller, list(dict.fromkeys(texts))
        self.wanted, self.concepts = wanted, [picture.concept for picture in pictures]
        self.logits = match_logits(guide, teller, images(pictures))
        self.logits.embed = Remembering(self.logits.embed, memory)

    def magic(self, magic: Magic) -> list[str]:
        """As `guide.tell` of the pictures, but without encoding a text twice for all of the settings."""
        return told_by(self.logits, self.teller, magic=magic, rows=BATCH, max_new=MAX_TEXT)

    def contrastive(self, magic: Magic) -> list[str]:
        """One caption for all, as no picture is asked."""
        one = Decoder(
            self.teller.model, [self.teller.prompt("lm")], None, max_new=MAX_TEXT, candidates=magic.k
        )
        plain, eos = replace(magic, beta=0.0), self.teller.tokenizer.eos
        tokens = magic_search(one, magic=plain, eos=eos, max_new=MAX_TEXT)[0]
        return [self.teller.tokenizer.decode(tokens).strip()] * len(self.wanted)

    def retrieval(self) -> list[str]:
        best_B = (self.logits.image_BD @ self.logits.embed(self.texts).T).argmax(1)
        return [self.texts[i] for i in best_B.tolist()]

    def cider(self, captions: Sequence[str]) -> np.ndarray:
        return cider(captions, [[text] for text in self.wanted])

    def scores(self, captions: Sequence[str]) -> Figures:
        """How near the captions come to what the pictures should get."""
        references, cider_N = [[text] for text in self.wanted], self.cider(captions)
        by_n = bleu(captions, references)
        told, true = [parts(text) for text in captions], [parts(text) for text in self.wanted]
        right = {
            part: float(np.mean([mine[i] == theirs[i] for mine, theirs in zip(told, true, strict=True)]))
            for i, part in enumerate(PARTS)
            if true[0][i] is not None
        }
        return {
            "cider": float(cider_N.mean()),
            "cider_interval": bootstrap_interval(cider_N, self.concepts),
            "bleu_1": by_n[0],
            "bleu_4": by_n[3],
            "rouge_l": float(rouge_l(captions, references).mean()),
            "exact": float(same(captions, self.wanted).mean()),
            **right,
        }

    def compared(self, magic: Magic, paper: Magic) -> tuple[Figures, dict[str, list[str]]]:
        """What the methods' captions are worth, and the captions."""
        captions = {
            "magic": self.magic(magic),
            "magic_paper": self.magic(paper),
            "contrastive": self.contrastive(paper),
            "retrieval": self.retrieval(),
        }
        gain_N = self.cider(captions["magic"]) - self.cider(captions["retrieval"])
        figures = {
            "texts": len(self.texts),
            "within_k": self.within(magic.k),
            "scores": {method: self.scores(found) for method, found in captions.items()},
            "magic_minus_retrieval": [float(gain_N.mean()), *bootstrap_interval(gain_N, self.concepts)],
        }
        return figures, captions

    @torch.no_grad()
    def within(self, k: int) -> float:
        """The share of the right captions' tokens that are among the k likeliest after those before them."""
        model, tokenizer, found = self.teller.model, self.teller.tokenizer, list[bool]()
        for text in self.wanted:
            tokens = [*tokenizer.encode(text), tokenizer.eos]
            decoder = Decoder(model, [self.teller.prompt("lm")], None, max_new=len(tokens))
            for token in tokens:
                logits_V = model.text_logits(decoder.hidden_BD)[0]
                found.append(int((logits_V > logits_V[token]).sum()) < k)
                decoder.step(torch.tensor([token]))
        return float(np.mean(found))

    def tuned(self) -> tuple[Magic, Magic, Figures]:
        """The best of what is tried, the best of the paper's, what each was worth."""
        worth = {magic: float(self.cider(self.magic(magic)).mean()) for magic in TRIED}
        figures = {
            "pictures": len(self.wanted),
            "cider": [asdict(magic) | {"cider": value} for magic, value in worth.items()],
            "cider_retrieval": float(self.cider(self.retrieval()).mean()),
        }
        return max(TRIED, key=lambda each: worth[each]), max(PAPER, key=lambda each: worth[each]), figures


def timed(caption: Callable[[Picture], str], pictures: Sequence[Picture]) -> tuple[list[str], float]:
    """(captions, seconds for each), one picture at a time."""
    with Stopwatch() as watch:
        captions = [caption(picture) for picture in pictures]
    return captions, watch.seconds / len(pictures)


def against_gradients(
    guide: Pipeline, teller: Pipeline, pictures: Sequence[Picture], magic: Magic, corpus: References
) -> Figures:
    """What MAGIC and gradient guidance cost and say on the same pictures."""
    prompt, asked = teller.prompt("lm"), 0

    def by_gradients(picture: Picture, *, remembering: bool = False) -> str:
        nonlocal asked
        logits = match_logits(guide, teller, [picture.image])
        if remembering:
            logits.embed = Remembering(logits.embed)
        tokens = gradient_guided(
            teller.model,
            prompt,
            GradientGuidance(),
            eos=teller.tokenizer.eos,
            max_new=MAX_NEW,
            image_logits=logits,
        )
        if isinstance(logits.embed, Remembering):
            asked += logits.embed.asked
        return teller.tokenizer.decode(tokens).strip()

    def by_magic(picture: Picture) -> str:
        return guide.tell(picture.image, teller, magic=magic)

    by_magic(pictures[0])  # the first call of a process is slower
    found, magic_s = timed(by_magic, pictures)
    gradient, gradient_s = timed(by_gradients, pictures)
    again, remembering_s = timed(lambda picture: by_gradients(picture, remembering=True), pictures)
    _, magic_after_s = timed(by_magic, pictures)  # the machine may have had more to do than at first
    wanted = [[describe(picture.row)] for picture in pictures]
    return {
        "cider_gradient": float(cider(gradient, wanted, corpus=corpus).mean()),
        "cider_magic_same": float(cider(found, wanted, corpus=corpus).mean()),
        "gradient_pictures": len(pictures),
        "gradient_same_remembering": float(same(again, gradient).mean()),
        "seconds": {
            "magic": magic_s,
            "magic_after": magic_after_s,
            "gradient": gradient_s,
            "gradient_remembering": remembering_s,
        },
        "texts_read_gradient": asked / len(pictures),
        "speedup": gradient_s / max(magic_s, magic_after_s),
        "speedup_remembering": remembering_s / max(magic_s, magic_after_s),
        "gradient_captions": [
            {"caption": describe(picture.row), "magic": mine, "gradient": theirs}
            for picture, mine, theirs in zip(pictures, found, gradient, strict=True)
        ],
    }


def run(work: Path, *, limit: int | None, gradient_captions: int) -> Figures:
    everything = load_pictures()
    train_part, val = ([p for p in everything if p.row["split"] == name] for name in ("train", "val"))
    order = {each: i for i, each in enumerate(hash_order((p.row["id"] for p in val), salt="magic"))}
    pictures = sorted(val, key=lambda picture: order[picture.row["id"]])[:limit]
    tuning = to_tune_on(train_part, val)
    kept_out = {picture.row["id"] for picture in tuning}
    seen = [picture for picture in train_part if picture.row["id"] not in kept_out]
    texts, memory = [describe(picture.row) for picture in seen], dict[str, Tensor]()
    away = {normalise(name) for name in names(val)}
    others = [describe(each.row) for each in seen if normalise(each.row["name_en"]) not in away]
    guide = guide_of(seen, work / "guide")
    teller, unknowing = teller_of(texts, work / "teller"), teller_of(others, work / "unknowing")

    def told(teller: Pipeline, texts: Sequence[str], shown: Sequence[Picture]) -> Told:
        return Told(guide, teller, texts, shown, [describe(picture.row) for picture in shown], memory)

    magic, paper, tried = told(teller, texts, tuning[:limit]).tuned()
    assert not {describe(picture.row) for picture in pictures} & set(texts), "no caption is among the texts"
    main, captions = told(teller, texts, pictures).compared(magic, paper)
    references = [[describe(picture.row)] for picture in pictures]
    return {
        **{f"cider_{method}": found["cider"] for method, found in main["scores"].items()},
        **against_gradients(guide, teller, pictures[:gradient_captions], magic, references),
        "pictures": len(pictures),
        "settings": asdict(magic),
        "settings_paper": asdict(paper),
        **main,
        "tuning": tried,
        "withheld": told(unknowing, others, pictures).compared(magic, paper)[0],
        "samples": [
            {
                "caption": describe(picture.row),
                **{method: found[i] for method, found in captions.items()},
            }
            for i, picture in enumerate(pictures[:12])
        ],
    }


def main(argv: Sequence[str] | None = None) -> Figures:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/magic"), help="where the models are kept")
    parser.add_argument("--limit", type=int, help="only so many pictures of val and to tune on; default: all")
    parser.add_argument("--gradient-captions", type=int, default=3, help="pictures for gradient guidance")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(argv)
    figures = run(options.work, limit=options.limit, gradient_captions=options.gradient_captions)
    command = f"python benchmarks/magic.py --gradient-captions {options.gradient_captions}"
    command += f" --limit {options.limit}" if options.limit else ""
    line = {"benchmark": "magic", **rounded(figures), "command": command, "machine": machine()}
    emit(line, options.out)
    return line


if __name__ == "__main__":
    main()
