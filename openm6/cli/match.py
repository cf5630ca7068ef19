"""openm6 match: scores how well texts fit pictures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, cast

import typer

from openm6.cli.arguments import split_pictures
from openm6.cli.output import Device, Json, Model, show

if TYPE_CHECKING:
    from openm6.decode.rank import By


def match(
    arguments: Annotated[list[str], typer.Argument(help="Picture files, and texts to score, in quotes.")],
    rank: Annotated[
        bool, typer.Option(help="Judge each picture's best 128 texts again; for texts of one kind.")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            help="With --rank: captions, or encoders, which a run of r2d2-emoji has; default: all that are there."
        ),
    ] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score how well texts fit pictures, by cosine or with ranking, the best first.

    openm6 match a.png "red apple" "dog face"
    """
    images, texts = split_pictures(arguments)
    if not texts:
        raise ValueError("match needs at least one text, in quotes, beside the pictures")
    import openm6

    if by is not None and not rank:
        raise ValueError("--by goes with --rank")
    m6 = openm6.load(model, device=device)
    scores = m6.rank_texts(images, texts, by=cast("By | None", by)) if rank else m6.match(images, texts)
    for image, row in zip(images, scores, strict=True):
        judged = (
            (float(score), text) for score, text in zip(row, texts, strict=True) if math.isfinite(score)
        )
        ranked = sorted(judged, reverse=True)
        lines = [f"{score:6.3f}  {text}" for score, text in ranked]
        show(
            {"input": image, "output": [{"text": text, "score": round(score, 4)} for score, text in ranked]},
            as_json=as_json,
            line="\n".join(lines if len(images) == 1 else [image, *(f"  {each}" for each in lines)]),
        )
