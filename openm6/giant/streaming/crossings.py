"""Detects a value that a model computes for one micro-batch and reads for another.

In memory one micro-batch goes through the whole model before the next one begins. In a streamed step all
micro-batches pass a layer before any of them comes to the next layer. So if a module leaves a value in an attribute
(or a hook leaves it in a list), the value may belong to another micro-batch when the model reads it. `Crossings`
notes for which micro-batch each tensor was made, and detects such a read. It cannot detect reads of plain numbers,
so a layer that stores new numbers in itself is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from openm6.giant.measure.live_bytes import storage_key, when_freed
from openm6.giant.models.frame_values import tensors_of


class Crossed(BaseException):
    """A tensor of one micro-batch was read for another. Not an `Exception`, so that the model's handlers do not
    catch it.

    `layer` is the layer that read it; None: the code between the layers.
    """

    def __init__(self, layer: int | None) -> None:
        super().__init__(layer)
        self.layer = layer


class Crossings(TorchDispatchMode):
    """Context for operations. They belong to the micro-batch, and to the layer, that the
    last call of `at` named.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[int, int | None]] = {}  # by storage: for whom, in which layer
        self._here: tuple[int, int | None] = (0, None)
        self._found = False

    def at(self, micro_batch: int, layer: int | None) -> Crossings:
        """The next operations are for this micro-batch, in this layer; None: between layers."""
        self._here, self._found = (micro_batch, layer), False
        return self

    def check(self) -> None:
        """Raise Crossed if a tensor of another micro-batch was read since `at`."""
        if self._found:
            raise Crossed(self._here[1])

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        micro_batch, layer = self._here
        given = {storage_key(each) for each in tensors_of((args, kwargs)) if not each.is_meta}
        for made_for, made_in in (self._made[key] for key in given if key in self._made):
            # A layer may keep a table for itself: the order in which micro-batches come to it is that of memory.
            if made_for != micro_batch and (layer is None or made_in != layer):
                self._found = True
        out = func(*args, **(kwargs or {}))
        for each in tensors_of(out):
            if not each.is_meta and (key := storage_key(each)) not in given:
                if key not in self._made:
                    when_freed(each, self._forget, key)
                self._made[key] = self._here
        return out

    def _forget(self, key: int) -> None:
        self._made.pop(key, None)


def numbers_of(layer: nn.Module) -> dict[str, float]:
    """The numbers (float) among the attributes of a layer's modules, by their paths."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if type(value) is float
    }
