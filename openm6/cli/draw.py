"""openm6 draw: draws pictures from words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from openm6.cli.arguments import check_known, check_writable
from openm6.cli.output import Device, Json, Model, Seed, show


def draw(
    texts: Annotated[list[str], typer.Argument(help="What to draw, in English or Chinese.")],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="PNG file (ball is ball.png), or a folder/; for several texts, a folder or a name to number.",
        ),
    ] = "drawing.png",
    candidates: Annotated[int, typer.Option(help="Drawings to choose the best of.")] = 16,
    style: Annotated[
        str | None, typer.Option(help="A set of the corpus, such as twemoji; default: any.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the PNG in pixels; the model draws at 64.")] = 256,
    seed: Seed = 0,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw words as PNG pictures.

    openm6 draw "soccer ball" -o ball.png
    """
    if not 1 <= size <= 4096:
        raise ValueError(f"--size must lie between 1 and 4096, not {size}")
    if not all(text.strip() for text in texts):
        raise ValueError("a text to draw must say something; one of them is empty")
    check_known(style, "style", model)
    paths = name_files(out, len(texts))
    for path in paths:
        check_writable(path)
    from PIL import Image

    import openm6

    m6 = openm6.load(model, device=device)
    drawings = m6.draw(texts, candidates=candidates, style=style, seed=seed)
    for i, (text, path, drawing) in enumerate(zip(texts, paths, drawings, strict=True)):
        drawing.resize((size, size), Image.Resampling.LANCZOS).save(path)
        show(
            {"input": text, "output": str(path), "style": style, "seed": seed + i},
            as_json=as_json,
            line=f"{path}: {text}",
        )


def name_files(out: str, count: int) -> list[Path]:
    """The file of each drawing: `out` itself, numbered files beside it, or numbered files in it. Raises ValueError
    unless it is a PNG.

    A name without a suffix that is not a folder yet means a file for one text, and a folder for several texts.
    """
    path = Path(out)
    if out.endswith(("/", os.sep)) or path.is_dir() or (path.suffix == "" and count > 1):
        return [path / f"{i:03d}.png" for i in range(count)]
    if path.suffix == "":
        return [path.with_name(f"{path.name}.png")]
    if path.suffix.lower() != ".png":
        raise ValueError(f"drawings are saved as PNG; name the output *.png, or a folder, not {path.name}")
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i:03d}") for i in range(count)]
