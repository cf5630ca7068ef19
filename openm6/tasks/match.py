"""match: a picture and a text -> how well they fit, the cosine of their two embeddings.

Both are read at the `<match>` mark that closes their source; training pulls pairs together (InfoNCE).
match_begun teaches the same of texts that are cut after some word, which is what MAGIC asks
(`openm6.decode.magic`): how well does what has been said so far fit the picture? match_astray brings texts that
fit no picture, begun and gone on with a word of theirs that belongs elsewhere: "flat drawing in horse" says more of
the picture of a horse than "flat drawing in brown", and without them would be said.
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
