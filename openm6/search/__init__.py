"""Visual search after Alibaba's Pailitao ("Visual Search at Alibaba", KDD 2018, 2102.04674).

`docs/search.md` describes it.
"""

from openm6.search.index import Hit, Index
from openm6.search.indexing import Changes
from openm6.search.store import Unavailable

__all__ = ["Changes", "Hit", "Index", "Unavailable"]
