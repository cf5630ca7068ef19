"""MAGIC beside contrastive search, retrieval and gradient guidance on unseen pictures; one JSON line.

    python benchmarks/magic.py --out benchmarks/results/magic.json
    python benchmarks/magic.py --limit 20 --gradient-captions 1       # a look, not a result

Two models, trained here and kept in `--work`. The teller (`configs/tell.yaml`) has read the English names of the
training pictures and no picture. The guide (`configs/match-begun.yaml`) is the shipped model, its `match`
trained on for texts that are not finished. The pictures are those of `val`. Their names are left out of the
texts that the teller read and that retrieval finds, as the captions of COCO's test pictures are in the paper:
a name is new, its words may be known. All methods use the same two models and the same texts.

    cider_magic         mean CIDEr-D of MAGIC's captions (k, alpha and beta in `settings`), one name a reference
    cider_contrastive   of contrastive search, MAGIC without the picture: one caption for all
    cider_retrieval     of the text that `match` likes best, of all that the teller read
    cider_gradient      of gradient guidance, and `cider_magic_same` of MAGIC on the same few pictures
    scores              CIDEr with its 95 % interval (whole concepts resampled), BLEU-1 and -4, ROUGE-L, exact
    magic_minus_retrieval  mean difference of CIDEr with its interval, picture by picture
    known               the same for a teller and a retrieval that know the names of `val` too
    shipped_guide       the same with the shipped model as it is for a guide
    captioner           scores of the guide's own `caption`, which was trained on pictures with their names
    seconds             a caption, one picture at a time; of MAGIC and of gradient guidance on the same pictures
    speedup             their ratio
    speedup_remembering the same when gradient guidance encodes no text of a picture twice
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import openm6
from benchmarks.bench import Picture, images, load_pictures, names
from benchmarks.common import Stopwatch, emit, hash_order, machine, rounded
from benchmarks.gradient_guided import GradientGuidance, gradient_guided
from benchmarks.measures import bootstrap_interval, normalise, same
from openm6.decode.magic import Magic
from openm6.decode.pipeline import Pipeline
from openm6.decode.tell import MatchLogits, match_logits
from openm6.tasks.caption_metrics import bleu, cider, rouge_l
from openm6.train.config import RunConfig
from openm6.train.loop import train
from openm6.train.recipe import load_recipe

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# The authors' alpha and beta for COCO. Their k of 45 holds what may follow "a man riding"; names begin with the
# word that matters, so as many are looked at as gradient guidance looks at.
MAGIC = Magic(k=512, alpha=0.1, beta=2.0)
MAX_NEW = 15  # tokens of gradient guidance, as in its authors' code
Figures = dict[str, Any]


def trained(recipe: str, folder: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """The model of a recipe: kept from an earlier call, gone on with, or trained now."""
    if not (folder / "model").is_dir():
        print(f"training {folder.name} ...", file=sys.stderr, flush=True)
        train(load_recipe(CONFIGS / f"{recipe}.yaml", list(overrides), RunConfig), folder)
    return openm6.load(folder)


def teller_of(texts: Sequence[str], folder: Path) -> Pipeline:
    path = folder.with_suffix(".jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return trained("tell", folder, [f"mix.0.data.path={path}"])


def texts_for(pictures: Sequence[Picture], unknown: Sequence[Picture]) -> list[str]:
    """The names of pictures, one a line, but those of what is to stay unknown."""
    left_out = {normalise(picture.name()) for picture in unknown}
    return [name for name in names(pictures) if normalise(name) not in left_out]


def scores(captions: Sequence[str], pictures: Sequence[Picture]) -> Figures:
    """How near captions come to the pictures' names."""
    references = [[name] for name in names(pictures)]
    cider_N = cider(captions, references)
    by_n = bleu(captions, references)
    return {
        "cider": float(cider_N.mean()),
        "cider_interval": bootstrap_interval(cider_N, [picture.concept for picture in pictures]),
        "bleu_1": by_n[0],
        "bleu_4": by_n[3],
        "rouge_l": float(rouge_l(captions, references).mean()),
        "exact": float(same(captions, names(pictures)).mean()),
    }


def retrieve(guide: Pipeline, texts: Sequence[str], pictures: Sequence[Picture]) -> list[str]:
    listed = list(dict.fromkeys(texts))
    return [listed[i] for i in guide.match(images(pictures), listed).argmax(1)]


def told(guide: Pipeline, teller: Pipeline, texts: Sequence[str], pictures: Sequence[Picture]) -> Figures:
    """Captions of MAGIC, contrastive search and retrieval, and what they are worth."""
    plain = Magic(k=MAGIC.k, alpha=MAGIC.alpha, beta=0.0)
    captions = {
        "magic": guide.tell(images(pictures), teller, magic=MAGIC),
        "contrastive": [guide.tell(pictures[0].image, teller, magic=plain)] * len(pictures),
        "retrieval": retrieve(guide, texts, pictures),
    }
    references = [[name] for name in names(pictures)]
    gain_N = cider(captions["magic"], references) - cider(captions["retrieval"], references)
    concepts = [picture.concept for picture in pictures]
    return {
        "captions": captions,
        "scores": {method: scores(found, pictures) for method, found in captions.items()},
        "magic_minus_retrieval": [float(gain_N.mean()), *bootstrap_interval(gain_N, concepts)],
    }


class Remembering(MatchLogits):
    """Image logits of one picture that encode no text twice."""

    def __init__(self, logits: MatchLogits):
        super().__init__(logits.image_BD, self._recall, logits.decode)
        self._embed, self._known = logits.embed, dict[str, Tensor]()

    def _recall(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in texts if text not in self._known]
        if new:
            self._known.update(zip(new, self._embed(new), strict=True))
        return torch.stack([self._known[text] for text in texts])


def timed(caption: Callable[[Picture], str], pictures: Sequence[Picture]) -> tuple[list[str], float]:
    """(captions, seconds for each), one picture at a time; the first one is captioned once before, unmeasured."""
    caption(pictures[0])
    with Stopwatch() as watch:
        captions = [caption(picture) for picture in pictures]
    return captions, watch.seconds / len(pictures)


def against_gradients(guide: Pipeline, teller: Pipeline, pictures: Sequence[Picture]) -> Figures:
    """What MAGIC and gradient guidance cost and say on the same pictures."""
    prompt = teller._prompt("lm")

    def by_gradients(picture: Picture, *, remembering: bool = False) -> str:
        logits = match_logits(guide, teller, [picture.image])
        tokens = gradient_guided(
            teller.model,
            prompt,
            GradientGuidance(),
            eos=teller.tokenizer.eos,
            max_new=MAX_NEW,
            image_logits=Remembering(logits) if remembering else logits,
        )
        return teller.tokenizer.decode(tokens).strip()

    magic, magic_s = timed(lambda picture: guide.tell(picture.image, teller, magic=MAGIC), pictures)
    gradient, gradient_s = timed(by_gradients, pictures)
    again, remembering_s = timed(lambda picture: by_gradients(picture, remembering=True), pictures)
    assert again == gradient, "what is remembered is what was computed"
    return {
        "cider_gradient": scores(gradient, pictures)["cider"],
        "cider_magic_same": scores(magic, pictures)["cider"],
        "gradient_pictures": len(pictures),
        "seconds": {"magic": magic_s, "gradient": gradient_s, "gradient_remembering": remembering_s},
        "speedup": gradient_s / magic_s,
        "speedup_remembering": remembering_s / magic_s,
        "gradient_captions": [
            {"name": picture.name(), "magic": mine, "gradient": theirs}
            for picture, mine, theirs in zip(pictures, magic, gradient, strict=True)
        ],
    }


def run(work: Path, *, limit: int | None, gradient_captions: int) -> Figures:
    everything = load_pictures()
    by_split = {name: [p for p in everything if p.row["split"] == name] for name in ("train", "val")}
    order = {
        each: i for i, each in enumerate(hash_order((p.row["id"] for p in by_split["val"]), salt="magic"))
    }
    pictures = sorted(by_split["val"], key=lambda picture: order[picture.row["id"]])[:limit]
    new, known = texts_for(by_split["train"], by_split["val"]), texts_for(by_split["train"], [])
    guide, shipped = trained("match-begun", work / "guide"), openm6.load()
    teller, knowing = teller_of(new, work / "teller"), teller_of(known, work / "teller-known")
    main = told(guide, teller, new, pictures)
    captions = main.pop("captions")
    others = {
        "known": told(guide, knowing, known, pictures),
        "shipped_guide": told(shipped, teller, new, pictures),
    }
    for each in others.values():
        del each["captions"]
    return {
        **{f"cider_{method}": found["cider"] for method, found in main["scores"].items()},
        **against_gradients(guide, teller, pictures[:gradient_captions]),
        **main,
        **others,
        "captioner": scores(guide.caption(images(pictures)), pictures),
        "texts": len(set(new)),
        "pictures": len(pictures),
        "settings": asdict(MAGIC),
        "samples": [
            {"name": picture.name(), **{method: found[i] for method, found in captions.items()}}
            for i, picture in enumerate(pictures[:12])
        ],
    }


def main(argv: Sequence[str] | None = None) -> Figures:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/magic"), help="where the models are kept")
    parser.add_argument("--limit", type=int, help="only so many pictures of val; default: all")
    parser.add_argument("--gradient-captions", type=int, default=12, help="pictures for gradient guidance")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args(argv)
    figures = run(options.work, limit=options.limit, gradient_captions=options.gradient_captions)
    command = "python benchmarks/magic.py" + (f" --limit {options.limit}" if options.limit else "")
    line = {"benchmark": "magic", **rounded(figures), "command": command, "machine": machine()}
    emit(line, options.out)
    return line


if __name__ == "__main__":
    main()
