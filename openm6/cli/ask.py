"""openm6 ask: answers questions about pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from openm6.cli.arguments import split_pictures
from openm6.cli.output import Device, Json, MaxTokens, Model, show


def ask(
    arguments: Annotated[
        list[str], typer.Argument(help="Picture files, and questions in English or Chinese.")
    ],
    max_tokens: MaxTokens = 40,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer questions about pictures.

    openm6 ask apple.png "what colour is it?"
    """
    images, questions = split_pictures(arguments)
    if not questions:
        raise ValueError("ask needs a question, in quotes, beside the pictures")
    import openm6

    pairs = [(image, question) for image in images for question in questions]
    answers = openm6.load(model, device=device).ask(
        [image for image, _ in pairs], [question for _, question in pairs], max_tokens=max_tokens
    )
    for (image, question), answer in zip(pairs, answers, strict=True):
        told = [image] if len(images) > 1 else []
        told += [question] if len(questions) > 1 else []
        show(
            {"input": image, "question": question, "output": answer},
            as_json=as_json,
            line=": ".join([*told, answer]),
        )
