"""match: a picture and a text -> their fit, the cosine of their two embeddings.

Each side is read at the `<match>` mark that closes its source. Training pulls pairs together (InfoNCE).

Two more tasks train the image score of MAGIC (`openm6.decode.magic`), which asks how well an unfinished text fits a
picture. match_begun matches texts that are cut after some word. match_astray adds texts that fit no picture: the
beginning of a text, continued with a wrong word of the same text. Without it, "flat drawing in horse" would
score higher for a picture of a horse than "flat drawing in brown" does, because it names more of the picture.
"""

from __future__ import annotations

from random import Random

from openm6.modalities.text import TextTokenizer
from openm6.tasks.task import Fields, Record, Task, pick_language

IMAGE_SIDE = "[IMAGE:image] -> <match>"
TEXT_SIDE = "[TEXT:text] -> <match>"


def _fields(record: Record, rng: Random, tokenizer: TextTokenizer) -> Fields | None:
    language = pick_language(record, "caption", rng)
    if language is None or record.get("image") is None:
        return None
    text = record[f"caption_{language}"]
    return {"image": record["image"], "text": text, "key": record.get("concept") or text}


def _begun_fields(record: Record, rng: Random, tokenizer: TextTokenizer) -> Fields | None:
    language = pick_language(record, "caption", rng)
    if language is None or record.get("image") is None:
        return None
    words = tokenizer.words(str(record[f"caption_{language}"]))
    begun = "".join(words[: rng.randint(1, len(words))])
    return {"image": record["image"], "text": begun, "key": begun}


def _astray_fields(record: Record, rng: Random, tokenizer: TextTokenizer) -> Fields | None:
    language = pick_language(record, "caption", rng)
    if language is None:
        return None
    words = tokenizer.words(str(record[f"caption_{language}"]))
    right = rng.randrange(len(words))
    others = [word for word in words if word.strip() != words[right].strip()]
    if not others:
        return None
    astray = ("".join(words[:right]) + rng.choice(others)).lstrip()
    return {"text": astray}  # without a key it belongs to nothing


MATCH = Task("match", (IMAGE_SIDE, TEXT_SIDE), _fields)
MATCH_BEGUN = Task("match_begun", (IMAGE_SIDE, TEXT_SIDE), _begun_fields)
MATCH_ASTRAY = Task("match_astray", (TEXT_SIDE,), _astray_fields)
