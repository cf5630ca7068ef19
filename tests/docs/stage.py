"""What the Python code of each page takes for granted: files in the working folder, and names.

A page's function gets an empty folder, puts there the files that a reader would have, and returns the names that
the page uses without making them. Pages whose code needs nothing are listed as `nothing`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests import tiny
from tests.giant.folders import VOCAB, write_folder

Names = dict[str, Any]


def nothing(folder: Path) -> Names:
    return {}


def photo(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        Image.fromarray(tiny.picture(i)).convert("RGB").save(folder / name)


def run(folder: Path, name: str, **changes: Any) -> None:
    """A run folder, of a model of the usual kind that has trained for one step."""
    data = folder.parent / f"{name}-data"
    data.mkdir()
    changes = {"steps": 1, "eval_every": 1, "checkpoint_every": 1, "log_every": 1, **changes}
    tiny.run(tiny.recipe(data, **changes), folder / "runs" / name)


def tokens() -> dict[str, torch.Tensor]:
    ids = torch.randint(VOCAB, (2, 8))
    return {"input_ids": ids, "labels": ids}


def readme(folder: Path) -> Names:
    photo(folder, "photo.png")
    write_folder(folder / "path/to/qwen3", "qwen3")
    return {"batches": [[tokens()]]}


def bring_your_own_data(folder: Path) -> Names:
    from datasets import Dataset

    (folder / "photos").mkdir()
    photo(folder / "photos", "a.png", "b.png")
    (folder / "photos/products.csv").write_text("file,title\na.png,red apple\nb.png,green frog\n", "utf-8")
    pictures = [str(folder / "photos" / name) for name in ("a.png", "b.png")]
    return {"dataset": Dataset.from_dict({"img": pictures, "text": ["red apple", "green frog"]})}


def decoding(folder: Path) -> Names:
    photo(folder, "photo.png", "a.png", "b.png")
    run(folder, "tell")
    return {}


def hugging_face(folder: Path) -> Names:
    write_folder(folder / "path/to/qwen3", "qwen3")

    class Tokenizer:  # a stand-in: the page is not about tokenizers
        input_ids = torch.tensor([[1, 2, 3]])

        def __call__(self, prompt: str, return_tensors: str) -> Tokenizer:
            return self

        def decode(self, ids: torch.Tensor) -> str:
            return " ".join(map(str, ids.tolist()))

    return {
        "batches": [tokens(), tokens()],
        "held_out": [tokens()],
        "torch": torch,
        "tokenizer": Tokenizer(),
        "prompt": "a b c",
    }


def streaming(folder: Path) -> Names:
    write_folder(folder / "Qwen3-4B", "qwen3")
    return {"steps": [[tokens(), tokens()]]}


def pseudo_to_real(folder: Path) -> Names:
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(4))
    x_BC = torch.randn(8, 4)

    def compute_loss(model: Any) -> torch.Tensor:
        h_BC = x_BC
        for layer in model.layers:
            h_BC = h_BC + layer(h_BC).tanh()
        return (h_BC - x_BC.flip(1)).square().mean()

    return {"model": model, "compute_loss": compute_loss, "steps": 20}


def ranking(folder: Path) -> Names:
    photo(folder, "a.png", "b.png")
    model = {**tiny.CONFIG, "ranking_layers": 1}
    run(folder, "r2d2-emoji", model=model, objective={"kind": "r2d2", "queue": 4})
    return {"pictures": [folder / "a.png", folder / "b.png"], "texts": ["red apple", "a dog", "green frog"]}


def recipes(folder: Path) -> Names:
    from openm6.tasks.caption import pick_language
    from openm6.tasks.task import Task

    return {"pick_language": pick_language, "Task": Task}


def search(folder: Path) -> Names:
    (folder / "shop").mkdir()
    photo(folder, "photo.jpg", "0.png", "1.png", "2.png")
    lines = ["sku,photo,price,category,sales", "a,0.png,99,dress,5", "b,1.png,250,,7", "c,2.png,400,coat,9"]
    (folder / "products.csv").write_text("\n".join([*lines, ""]), "utf-8")
    return {}


def search_learning(folder: Path) -> Names:
    import numpy as np

    from openm6.search.learned.items import Items
    from openm6.search.learned.learning import train_search
    from openm6.search.learned.learning_data import LearningConfig

    photo(folder, *(f"{i}.png" for i in range(10)))
    pictures = [(folder / f"{i}.png").read_bytes() for i in range(10)]
    items = Items([str(i) for i in range(10)], pictures, [tiny.THINGS[i % 2][2] for i in range(10)])
    config = LearningConfig(image_size=64, dim=16, passes=1, view_passes=0, batch=8, held_out=0.2)
    train_search(items, config, folder / "shop-encoder")
    return {"pictures": [np.array(Image.open(folder / "0.png").convert("RGB").resize((64, 64)))]}


def music(folder: Path) -> Names:
    from openm6.data.music import write_midi
    from tests.data.music.scores import duet

    (folder / "midi-files").mkdir()
    for path in ("theme.mid", "midi-files/theme.mid"):
        write_midi(duet(), folder / path)
    return {}


STAGES: dict[str, Callable[[Path], Names]] = {
    "README.md": readme,
    "docs/bring-your-own-data.md": bring_your_own_data,
    "docs/data-card.md": nothing,
    "docs/decoding.md": decoding,
    "docs/change-the-model.md": nothing,
    "docs/hugging-face.md": hugging_face,
    "docs/music.md": music,
    "docs/pseudo-to-real.md": pseudo_to_real,
    "docs/ranking.md": ranking,
    "docs/recipes.md": recipes,
    "docs/search.md": search,
    "docs/search-learning.md": search_learning,
    "docs/streaming.md": streaming,
}


def cells(notebook: Path) -> list[str]:
    """The code of a notebook's cells, in order."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
