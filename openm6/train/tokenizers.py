"""The two tokenizers of a run. The text tokenizer is opened, or trained on the run's texts. The image tokenizer is
opened.
"""

from __future__ import annotations

from pathlib import Path

from openm6.data.atomic import replacing
from openm6.modalities.codes import ImageTokenizer
from openm6.modalities.text import TextTokenizer, train_tokenizer
from openm6.tasks.questions import WORDINGS, YES_NO
from openm6.train.batches import texts_of
from openm6.train.config import RunConfig

SHIPPED = Path(__file__).parent.parent / "checkpoints" / "m6-small"  # comes with the package


def model_folder(name: str | Path) -> Path:
    """The folder that a recipe names: a path, or `shipped`."""
    return SHIPPED if name == "shipped" else Path(name)


def open_tokenizers(config: RunConfig, run_dir: Path) -> tuple[TextTokenizer, ImageTokenizer | None]:
    """Open the tokenizers that the recipe names.

    If it names no text tokenizer, one is trained once and kept in the run folder. Raises ValueError if a tokenizer
    is missing or does not fit the model's vocabulary.
    """
    path = config.tokenizer or run_dir / "tokenizer.json"
    if config.init is not None:
        path = model_folder(config.init) / "tokenizer.json"
    elif config.tokenizer is None and not path.is_file():
        texts = [
            *texts_of(config.mix),
            *(w for ws in WORDINGS.values() for w in ws),
            *sum(YES_NO.values(), ()),
        ]
        with replacing(path) as fresh:
            train_tokenizer(texts, vocab_size=config.model.vocab_text).save(fresh)
    text = TextTokenizer.load(path)
    if text.size > config.model.vocab_text:
        raise ValueError(
            f"{path} has {text.size} tokens, but model.vocab_text is {config.model.vocab_text}: raise that"
        )
    if config.image_tokenizer is None:
        return text, None
    folder = model_folder(config.image_tokenizer)
    image = ImageTokenizer.load(folder).eval()
    model = config.model
    if model.codebook and (model.codebook, model.cells * model.codes_per_cell) != (
        image.config.codebook_size,
        image.config.codes_per_image,
    ):
        raise ValueError(
            f"{folder} makes {image.config.codes_per_image} codes out of {image.config.codebook_size} for an "
            f"image; set model.codebook to {image.config.codebook_size} and model.cells to "
            f"{image.config.codes_per_image // model.codes_per_cell}"
        )
    return text, image
