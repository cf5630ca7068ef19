"""A forward pass that stops at each call of a layer: the model's own code, run as a coroutine.

    run = Pass(lambda: loss(model, batch))
    run.go_on()                       # up to the first layer: `run.call` has the layer and its arguments
    run.go_on(answer)                 # hand back the layer's outputs; on to the next layer, or to the end
    run.result                        # the model's return value

The code between two layers (a *stretch*) runs as it is written, in a greenlet. A greenlet is a thread of control
that its owner enters and leaves by hand, inside one operating-system thread. PyTorch keeps some state per thread
(grad mode, autocast). `Pass` carries this state over, so both the pass and its owner find it as they left it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from greenlet import getcurrent, greenlet


@cache
def _kinds() -> tuple[str, ...]:
    """The types of devices that may compute here."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


@dataclass(frozen=True)
class Modes:
    """The modes that PyTorch keeps per thread and that a model may set around its layers."""

    grad: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]  # by type of device

    @classmethod
    def now(cls) -> Modes:
        autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _kinds()
        ]
        return cls(torch.is_grad_enabled(), tuple(autocast))

    def restore(self) -> None:
        torch.set_grad_enabled(self.grad)
        for kind, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)

    @contextmanager
    def but(self, *, grad: bool) -> Iterator[None]:
        """Context with these modes, and with or without gradients."""
        before = Modes.now()
        Modes(grad, self.autocast).restore()
        try:
            yield
        finally:
            before.restore()
            if not any(enabled for _, enabled, _ in before.autocast):
                torch.clear_autocast_cache()


@dataclass
class Call:
    """A layer that a model called, with its arguments."""

    layer: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    modes: Modes
    context: Context  # of the model's code: context variables
    in_function: bool = False  # inside a torch.autograd.Function, which has a backward pass of its own

    def run(self, work: Callable[[], Any]) -> tuple[Any, dict[str, list[Any]]]:
        """Run `work` in the model's context. Returns its result and the notes of transformers' output hooks.

        The notes are inner results (router logits) by name. They count as outputs of the layer as well.
        """
        return self.context.copy().run(_noting, work)


class _Greenlet(greenlet):
    """The greenlet of a pass, as a class of its own, so that it can be recognised."""


class Pass:
    """One forward pass. It waits for the layer of `call`. When it is `done`, it has a `result`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._greenlet = _Greenlet(work)
        self.call: Call | None = None
        self.result: Any = None
        self.done = False

    def go_on(self, *answer: Any) -> None:
        """Run to the next layer, or to the end. `answer`: the return value of the layer that it waits for, from
        `Call.run`. Raises every exception of the model.
        """
        modes = Modes.now()
        self.call = None
        try:
            got = self._greenlet.switch(*answer)
        finally:
            modes.restore()
        if self._greenlet.dead:
            self.result, self.done = got, True
        else:
            self.call = got

    def close(self) -> None:
        """Stop the pass where it waits. The model's `finally` clauses run."""
        self.call = None
        if self._greenlet and not self._greenlet.dead:
            modes = Modes.now()
            try:
                self._greenlet.throw()
            finally:
                modes.restore()


def ask(layer: int, /, *args: Any, **kwargs: Any) -> Any:
    """Replaces a layer's `forward`: it returns the outputs that the owner of the pass computes.

    Raises ValueError outside a pass, because the layer has no weights.
    """
    here = getcurrent()
    if not isinstance(here, _Greenlet):
        raise ValueError(
            f"layer {layer} of a streamed model was called outside of a forward pass, and its weights are not "
            "there: call the giant instead (step, evaluate, logits, generate), and let the model not use "
            "torch.utils.checkpoint, since every layer is computed again in any case"
        )
    modes = Modes.now()
    assert here.parent is not None
    call = Call(layer, args, kwargs, modes, copy_context(), _in_function())
    out, noted = here.parent.switch(call)
    modes.restore()
    for name, values in noted.items():
        collector = _collector()
        assert collector is not None
        collector.get()[name].extend(values)
    return out


_APPLY: Any = torch.autograd.Function.apply


def _in_function() -> bool:
    """Whether the caller was called by the forward pass of a torch.autograd.Function."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _APPLY.__func__.__code__:
            return True
        frame = frame.f_back
    return False


def _collector() -> Any:
    """transformers' variable for the notes of output hooks; None if transformers is not loaded."""
    module = sys.modules.get("transformers.utils.output_capturing")
    return getattr(module, "_active_collector", None)


def _noting(work: Callable[[], Any]) -> tuple[Any, dict[str, list[Any]]]:
    collector = _collector()
    if collector is None or not (outer := collector.get()):
        return work(), {}
    own: dict[str, Any] = {name: [] if isinstance(each, list) else each for name, each in outer.items()}
    token = collector.set(own)
    try:
        out = work()
    finally:
        collector.reset(token)
    return out, {name: each for name, each in own.items() if isinstance(each, list) and each}
