"""The templates of simulated scripts."""

from __future__ import annotations

import re

from openm6.serve.simulated.scripts import scripts
from openm6.serve.slots import SLOTS


def test_the_grammar_has_only_slots_that_its_source_names() -> None:
    for record in scripts(500, seed=1):
        slots = set(re.findall(r"\[(\w+)\]", record["text"]))
        assert slots == {"name", *(slot for slot in SLOTS if slot in record["title"].split())}
        assert (record["title"].split()[0] == "zh") == bool(re.search("[\u4e00-\u9fff]", record["text"]))
