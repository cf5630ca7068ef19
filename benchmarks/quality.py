"""How well does the model caption, answer, match, draw and write on unseen data? One JSON line.

    python benchmarks/quality.py                                  # everything, the shipped model
    python benchmarks/quality.py --parts caption,ask --model runs/m6-small
    python benchmarks/quality.py --cache runs/cache --out benchmarks/results/quality.json

Pictures: `val` holds unseen renditions of concepts that training has. `concept_val` holds concepts that training
does not have; their figures begin with `concept_val_`. Poems: `val`. The model answers only through
`openm6.load()`.

Parts can run one by one. With `--out`, the figures of a part replace its earlier figures in that file. Those of
other parts stay, as long as they came from the same corpus and the same model.

    knn        knn_efficientnet, knn_pixels, real_recall10: needs no model. EfficientNet-Lite0 reads about 50
               pictures a second on one core, so the whole corpus takes minutes; `--cache` keeps its features
    ngram      poem_ppl_ngram: needs no model
    caption    caption_en_exact, caption_zh_exact, their intervals, by family
    ask        ask_accuracy, ask_<kind>, ask_majority_<kind>
    match      match_r1, match_r1_zh, and from text to image
    draw       draw_recall10 (200 drawings of 16 candidates); `--sheet` also writes a picture of 64 of them
    tokenizer  tokenizer_psnr
    poem       poem_form (200 poems), poem_ppl
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # started as a file: the repository's root is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import openm6
from benchmarks import measures, ngram
from benchmarks.ask_questions import ask_questions
from benchmarks.bench import LANGUAGES, Bench, by_family, contact_sheet, images, load_pictures, names, recall
from benchmarks.common import Stopwatch, emit, hash_order, machine, rounded, sha256_files
from benchmarks.knn import nearest_by_cosine, nearest_by_pixels
from openm6.data.corpus import CORPUS_DIR, load_poems
from openm6.tasks.questions import KINDS
from openm6.train.memory import peak_resident_bytes

EVALUATED = (("", "val"), ("concept_val_", "concept_val"))  # prefix of the figures, split
N_DRAWINGS = 200
N_POEMS = 200
Figures = dict[str, Any]


def knn(bench: Bench) -> Figures:
    """Nearest neighbours: what looking up the most similar training picture would caption.

    `real_recall10` puts real unseen renditions through the measure of `draw_recall10_train`, and
    `real_recall10_all` through that of `draw_recall10` (every rendition but the query is in the gallery).
    """
    train, val = bench.split("train"), bench.split("val")
    val_ND = bench.gallery[bench.where("val")]
    near_NK = nearest_by_cosine(val_ND, bench.gallery[bench.where("train")], k=10)
    near_all_NK = nearest_by_cosine(val_ND, bench.gallery, k=10, itself=bench.where("val"))
    figures: Figures = {"val_pictures": len(val), "val_concepts": len({picture.concept for picture in val})}
    lookups = {"knn_efficientnet": near_NK[:, 0], "knn_pixels": nearest_by_pixels(images(val), images(train))}
    for key, nearest_N in lookups.items():
        for suffix, language in (("", "en"), ("_zh", "zh")):
            found = [train[i].name(language) for i in nearest_N]
            hits = measures.same(found, names(val, language))
            figures[key + suffix] = float(hits.mean())
            figures[f"{key}{suffix}_interval"] = measures.bootstrap_interval(hits, [p.concept for p in val])
            figures[f"{key}{suffix}_by_family"] = by_family(val, hits)
    figures["real_recall10"] = recall(near_NK, train, names(val))
    figures["real_recall10_all"] = recall(near_all_NK, bench.pictures, names(val))
    return figures


def poem_ngram(bench: Bench) -> Figures:
    """A Kneser-Ney model of the training poems' text; its order and discounts are chosen on 5 % of them."""
    train = {poem["id"]: poem["text"] for poem in bench.poems if poem["split"] == "train"}
    held_out = [poem["text"] for poem in bench.poems if poem["split"] == "val"]
    shuffled = [train[i] for i in hash_order(train, salt="n-gram slice")]
    n_slice = max(1, len(train) // 20)
    order, scale, on_slice = ngram.choose(shuffled[n_slice:], shuffled[:n_slice])
    model = ngram.KneserNey(shuffled, order, discount_scale=scale)
    return {
        "poem_ppl_ngram": ngram.perplexity(model, held_out),
        "poem_ngram_order": order,
        "poem_ngram_discount_scale": scale,
        "poem_ngram_slice_ppl": {str(order): ppl for order, ppl in on_slice.items()},
        "val_poems": len(held_out),
        "val_poem_characters": sum(map(len, held_out)),
    }


def caption(bench: Bench) -> Figures:
    """Names, compared in NFC, lower case and without outer white space; otherwise to the letter."""
    figures: Figures = {}
    for prefix, split in EVALUATED:
        pictures = bench.split(split)
        for language in LANGUAGES:
            hits = measures.same(bench.m6.caption(images(pictures), lang=language), names(pictures, language))
            key = f"{prefix}caption_{language}_exact"
            figures[key] = float(hits.mean())
            figures[f"{key}_interval"] = measures.bootstrap_interval(hits, [p.concept for p in pictures])
            figures[f"{key}_by_family"] = by_family(pictures, hits)
    return figures


def ask(bench: Bench) -> Figures:
    """Accuracy by kind, and over all: the mean of the four kinds, so that none counts for more.

    The baseline knows the language: it gives the most frequent answer of each kind in each language.
    """
    figures: Figures = {}
    for prefix, split in EVALUATED:
        for kind, asked in ask_questions(bench, bench.split(split)).items():
            answers = bench.m6.ask([picture.image for picture, _ in asked], [q.question for _, q in asked])
            truths = [question.answer for _, question in asked]
            hits = measures.same(answers, truths)
            languages = np.array([question.language for _, question in asked])
            figures[f"{prefix}ask_{kind}"] = float(hits.mean())
            for language in LANGUAGES:
                figures[f"{prefix}ask_{kind}_{language}"] = float(hits[languages == language].mean())
            figures[f"{prefix}ask_majority_{kind}"] = measures.majority_accuracy(truths, list(languages))
        figures[f"{prefix}ask_accuracy"] = float(np.mean([figures[f"{prefix}ask_{kind}"] for kind in KINDS]))
    return figures


def match(bench: Bench) -> Figures:
    """Image to text among the names of all concepts of all splits; text to image among a split's pictures."""
    figures: Figures = {}
    for suffix, language in (("", "en"), ("_zh", "zh")):
        texts = list({measures.normalise(name): name for name in names(bench.pictures, language)}.values())
        column = {measures.normalise(text): i for i, text in enumerate(texts)}
        figures[f"match_texts{suffix}"] = len(texts)
        for prefix, split in EVALUATED:
            pictures = bench.split(split)
            scores_NT = np.asarray(bench.m6.match(images(pictures), texts))
            truth_N = np.array([column[measures.normalise(name)] for name in names(pictures, language)])
            figures[f"{prefix}match_r1{suffix}"] = float((scores_NT.argmax(1) == truth_N).mean())
            asked_T = np.unique(truth_N)
            best_T = truth_N[scores_NT[:, asked_T].argmax(0)]
            figures[f"{prefix}match_text_to_image_r1{suffix}"] = float((best_T == asked_T).mean())
    return figures


def draw(bench: Bench) -> Figures:
    """Drawings of training concepts: is a real rendition of the concept among the ten most alike?

    The gallery is every rendition of the corpus; for `draw_recall10_train`, those of the training split.
    """
    wanted = [bench.concepts[concept] for concept in hash_order(bench.concepts, salt="draw")[:N_DRAWINGS]]
    prompts = names(wanted)
    drawings = bench.m6.draw(prompts, candidates=16, seed=0)
    if bench.sheet is not None:
        contact_sheet(drawings[:64], prompts[:64]).save(bench.sheet)
    drawn_ND = bench.judge.features([np.asarray(drawing.convert("RGB")) for drawing in drawings])
    near_NK = nearest_by_cosine(drawn_ND, bench.gallery, k=10)
    near_train_NK = nearest_by_cosine(drawn_ND, bench.gallery[bench.where("train")], k=10)
    return {
        "draw_prompts": len(prompts),
        "draw_recall10": recall(near_NK, bench.pictures, prompts),
        "draw_recall1": recall(near_NK[:, :1], bench.pictures, prompts),
        "draw_recall10_train": recall(near_train_NK, bench.split("train"), prompts),
    }


def tokenizer(bench: Bench) -> Figures:
    """Pictures that went through the image tokenizer and back: PSNR over white in dB, mean over pictures."""
    figures: Figures = {}
    for prefix, split in EVALUATED:
        pictures = bench.split(split)
        rebuilt = [np.asarray(image.convert("RGB")) for image in bench.m6.reconstruct(images(pictures))]
        values = [measures.psnr(new, old.image) for new, old in zip(rebuilt, pictures, strict=True)]
        figures[f"{prefix}tokenizer_psnr"] = float(np.mean(values))
    return figures


def poem(bench: Bench) -> Figures:
    """Poems sampled for withheld titles; perplexity of the withheld poems given their titles.

    The four forms are asked for in the corpus's proportions. `poem_copied_lines` is the share of sampled
    lines that stand in a training poem. A poem's end is an event that the model has to predict, but no
    character: `poem_ppl` is exp(nats of all characters and ends / characters), and `poem_ppl_ngram` is too.
    """
    held_out = [poem for poem in bench.poems if poem["split"] == "val"]
    shares = Counter(poem["form"] for poem in bench.poems if poem["form"] in measures.FORMS)
    written: list[str] = []
    formed: dict[str, list[bool]] = {}
    for form, n in measures.apportion(N_POEMS, shares).items():
        titles = {poem["id"]: poem["title"] for poem in held_out if poem["form"] == form}
        if chosen := [titles[i] for i in hash_order(titles, salt="poem")[:n]]:
            texts = bench.m6.write(chosen, form=form, seed=0)
            formed[form] = [measures.has_form(text, form) for text in texts]
            written += texts
    known = {line for p in bench.poems if p["split"] == "train" for line in measures.poem_lines(p["text"])}
    lines = [line for text in written for line in measures.poem_lines(text)]
    nats, characters = bench.m6.poem_nll(held_out)
    assert characters == sum(len(poem["text"]) for poem in held_out), "poem_nll scored another text"
    return {
        "poem_form": float(np.mean([hit for hits in formed.values() for hit in hits])),
        "poem_form_by_form": {
            form: {"poems": len(hits), "formed": float(np.mean(hits))} for form, hits in formed.items()
        },
        "poem_copied_lines": sum(line in known for line in lines) / max(1, len(lines)),
        "poem_ppl": float(np.exp(nats / characters)),
    }


PARTS: dict[str, Callable[[Bench], Figures]] = {
    "knn": knn,
    "ngram": poem_ngram,
    "caption": caption,
    "ask": ask,
    "match": match,
    "draw": draw,
    "tokenizer": tokenizer,
    "poem": poem,
}
MODEL_FREE = {"knn", "ngram"}


def run(bench: Bench, asked: Sequence[str], *, corpus: str, model: str | None) -> dict[str, Figures]:
    """Run these parts; each comes with its time, the process's peak memory so far and what it is about."""
    parts: dict[str, Figures] = {}
    for name in asked:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with Stopwatch() as watch:
            figures = PARTS[name](bench)
        parts[name] = {
            "figures": figures,
            "seconds": watch.seconds,
            "peak_memory_bytes": peak_resident_bytes(),
            "corpus": corpus,
            "model": None if name in MODEL_FREE else model,
        }
    return parts


def merged(earlier: Figures, parts: dict[str, Figures], *, corpus: str, model: str | None) -> Figures:
    """The figures of this run's `parts` beside those of an earlier run that still hold.

    A part holds while the corpus is the same and, unless it needs none, the model too.
    """
    held: dict[str, Figures] = {}
    for name, part in earlier.get("parts", {}).items():
        if part["corpus"] == corpus and (name in MODEL_FREE or model in (None, part["model"])):
            held[name] = part | {"figures": {key: earlier[key] for key in part["figures"]}}
    both = {name: part for name in PARTS if (part := parts.get(name, held.get(name)))}
    figures: Figures = {"benchmark": "quality", "command": "python benchmarks/quality.py"}
    for part in both.values():
        figures |= part["figures"]
    for language, baseline in (("en", "knn_efficientnet"), ("zh", "knn_efficientnet_zh")):
        if f"caption_{language}_exact" in figures and baseline in figures:
            figures[f"caption_{language}_gain"] = figures[f"caption_{language}_exact"] - figures[baseline]
    figures["seconds"] = sum(part["seconds"] for part in both.values())
    figures["peak_memory_bytes"] = max(part["peak_memory_bytes"] for part in both.values())
    figures["machine"] = machine()
    figures["parts"] = {name: part | {"figures": list(part["figures"])} for name, part in both.items()}
    return rounded(figures)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, help="a checkpoint or run folder; without it, the shipped model"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, of: " + ", ".join(PARTS))
    parser.add_argument("--cache", type=Path, help="a folder that keeps the features of the real pictures")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--sheet", type=Path, help="also write 64 of the drawings to this PNG file")
    args = parser.parse_args(argv)
    asked = args.parts.split(",")
    if unknown := [name for name in asked if name not in PARTS]:
        parser.error(f"--parts: there is no part '{unknown[0]}'; choose from {', '.join(PARTS)}")
    corpus = sha256_files(CORPUS_DIR.glob("*.parquet"))
    m6 = model = None
    if set(asked) - MODEL_FREE:
        m6 = openm6.load(args.model)
        model = sha256_files(path for path in m6.folder.iterdir() if path.is_file())
    bench = Bench(load_pictures(), load_poems().to_pylist(), m6=m6, cache=args.cache, sheet=args.sheet)
    parts = run(bench, asked, corpus=corpus, model=model)
    earlier = json.loads(args.out.read_text(encoding="utf-8")) if args.out and args.out.exists() else {}
    emit(merged(earlier, parts, corpus=corpus, model=model), args.out)


if __name__ == "__main__":
    main()
