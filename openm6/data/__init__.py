"""Reading, mixing and packing data; see `docs/bring-your-own-data.md`."""

from openm6.data.bad import BadCount, BadRecord
from openm6.data.config import DataConfig
from openm6.data.images import read_image, to_array
from openm6.data.mixture import Mixture
from openm6.data.opening import open_mixture, open_reader, open_source
from openm6.data.packing import pack
from openm6.data.reader import Indexed, Reader
from openm6.data.records import Fields, Record
from openm6.data.source import Source

__all__ = [
    "BadCount",
    "BadRecord",
    "DataConfig",
    "Fields",
    "Indexed",
    "Mixture",
    "Reader",
    "Record",
    "Source",
    "open_mixture",
    "open_reader",
    "open_source",
    "pack",
    "read_image",
    "to_array",
]
