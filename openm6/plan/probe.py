"""Measures this machine into a hardware profile: `openm6 plan --probe`.

    matrix products   large squares in fp32 and bf16
    layers            training passes of stacks of layers, of experts, of a text head and of an image backbone; the
                      rates of all kinds of work are those that explain these times best (`fit`)
    updates           each optimizer on one part
    disk, loopback    direct I/O in large blocks, and TCP between two processes (`links`)

A rate is the speed that the model's own code reaches while the probe runs, beside any other work on the machine.
Every round times each piece once, and the median over the rounds counts. So other work slows all pieces alike, and
not only the pieces that it happens to meet. The probe ends within its time limit, or raises an error.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch

from openm6.giant.measure.budget import release_memory
from openm6.giant.optimizers.named import Adafactor, AdamW, AdamW8bit, PartOptimizer
from openm6.giant.tiers.parts import TensorSpec
from openm6.plan.fit import Fit, Timed, fit_rates
from openm6.plan.hardware import Device, Hardware, Rates, UpdateRate
from openm6.plan.links import measure_disk, measure_loopback
from openm6.plan.samples import Sample, product, samples
from openm6.plan.tally import Cost

LIMIT = 120.0  # seconds
ROUNDS = 5
SHORT = 0.02  # seconds: shorter pieces are run several times in a row
ROUGH = 0.2  # error of the fit's median piece, above which plans are rough
# Shares of the limit. A slow or busy machine is measured less, and not for longer: no more kinds of pieces are made
# behind `MAKE`, no more rounds begun behind `MEASURE`, and behind `UPDATE` no more updates are timed.
MAKE, MEASURE, UPDATE = {"fp32": 0.2, "bf16": 0.35}, 0.5, 0.75
LEAST = {"fp32": 6, "bf16": 5}  # pieces that a fit needs: all kinds of work are in the first ones
BETWEEN = 4  # pieces between two timings of the products, so that these see the same machine as all else
SPREAD = 0.3  # of the products' times, above which the machine is too unsteady for its rates
SQUARES = (256, 512, 1024, 2048)  # the largest that takes about `SQUARE_SECONDS` at most is timed
SQUARE_SECONDS = 0.5

Report = Callable[[str], None]


class Probe(NamedTuple):
    """A profile, and the errors of its rates on the measured times."""

    hardware: Hardware
    fits: dict[str, Fit]  # by "fp32" and, where bf16 was measured, "bf16"

    @property
    def warnings(self) -> list[str]:
        """Sentences about figures of this profile that are not reliable."""
        found = [
            f"the rates explain the median piece in {dtype} only within {fit.median_error:.0%}: plans by this "
            "profile will be rough; measure again when the machine is less busy, or plan with --rehearse"
            for dtype, fit in self.fits.items()
            if fit.median_error > ROUGH
        ]
        spread = max(self.hardware.device.product_spread.values(), default=0.0)
        if spread > SPREAD:
            found.append(
                f"the times of one product spread by {spread:.0%}: the machine's speed changed meanwhile"
            )
        rates = self.hardware.device.rates
        if "bf16" not in self.fits:
            slow = rates.matrix_bf16 < rates.matrix_fp32
            why = "bf16 products are slower than fp32 ones here" if slow else "there was no time"
            found.append(f"{why}, so nothing but products was measured in bf16")
        return found


class Deadline:
    """The end of a probe's time."""

    def __init__(self, seconds: float) -> None:
        self.limit, self._begun = seconds, time.perf_counter()

    @property
    def used(self) -> float:
        """Share of the time that is over."""
        return (time.perf_counter() - self._begun) / self.limit

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, (1 - self.used) * self.limit)

    def check(self, doing: str, expected: float = 0.0) -> None:
        """Raise ValueError if the time is over, or will be in `expected` seconds."""
        if self.used + expected / self.limit > 1:
            raise ValueError(
                f"this machine was not measured within {self.limit:g} seconds (the time was over at: {doing}); "
                "try when it is less busy, or allow more with --limit"
            )


@dataclass
class Piece:
    """A sample with its cost, and the times that it took."""

    sample: Sample
    cost: Cost
    seconds: float  # of the last time
    times: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Run it once more, or several times in a row if it is short."""
        count = max(1, min(1000, round(SHORT / max(1e-6, self.seconds))))
        self.seconds = _once(lambda: [self.sample.run() for _ in range(count)]) / count
        self.times.append(self.seconds)

    @property
    def flops(self) -> float:
        """FLOP/s of the latest run."""
        return self.cost.flops / self.seconds

    @property
    def spread(self) -> float:
        """The distance of the times' quartiles (of few times: of their extremes) over their median."""
        if len(self.times) < 4:  # too few for quartiles
            return (max(self.times) - min(self.times)) / median(self.times)
        low, middle, high = quantiles(self.times, n=4)
        return (high - low) / middle

    @property
    def timed(self) -> Timed:
        return Timed(self.cost, median(self.times), self.sample.weight)


def probe(
    name: str,
    folder: Path,
    *,
    limit: float = LIMIT,
    on_progress: Report = lambda text: None,
    disk_bytes: int = 1 << 30,
) -> Probe:
    """Measure this machine. `folder` is on the disk to measure.

    Takes about half a minute on two idle cores, and at most `limit` seconds. Raises ValueError if that is not
    enough, or if the disk has no room.
    """
    deadline = Deadline(limit)
    before = release_memory()
    on_progress("matrix products")
    squares = {"fp32": _square(torch.float32, deadline), "bf16": _square(torch.bfloat16, deadline)}
    in_bf16 = squares["bf16"].flops > squares["fp32"].flops
    dtypes = ["fp32", "bf16"] if in_bf16 else ["fp32"]
    work = {dtype: _prepared(dtype == "bf16", deadline, on_progress) for dtype in dtypes}
    _measure(list(squares.values()), [p for each in work.values() for p in each], deadline, on_progress)
    work = {dtype: [piece for piece in each if piece.times] for dtype, each in work.items()}
    if in_bf16 and len(work["bf16"]) < LEAST["bf16"]:
        in_bf16 = False
    products = {dtype: square.cost.flops / square.timed.seconds for dtype, square in squares.items()}

    def of(*pieces: Piece) -> list[Timed]:
        return [piece.timed for piece in pieces]

    beside = of(squares["bf16"], *work["bf16"][1:3]) if in_bf16 else []
    fits = {"fp32": fit_rates([*of(squares["fp32"], *work["fp32"]), *beside], products)}
    if in_bf16:
        # Smaller products, and casts: the same bytes take another time. The rest of such a step is in fp32.
        shared = of(squares["fp32"], *work["fp32"][:4])
        fits["bf16"] = fit_rates([*of(squares["bf16"], *work["bf16"]), *shared], products)
    updates: dict[str, UpdateRate] = {}
    for kind, (optimizer, dtype) in _OPTIMIZERS.items():
        if deadline.used > UPDATE:  # then a plan takes it from the element-wise rate
            break
        on_progress(f"updates by {kind}")
        updates[kind] = _update(optimizer, dtype, deadline)
    library = max(64 << 20, release_memory() - before)
    on_progress("disk")
    deadline.check("disk")
    # It takes six times as long at most, and somewhat more where even a single block is slow.
    disk = measure_disk(folder, disk_bytes, seconds=min(1.5, 0.02 * limit, deadline.left / 12))
    on_progress("loopback")
    hardware = Hardware(
        name=name,
        about=f"measured; rates explain the pieces {_within(fits)}; {_spread(squares)}",
        device=Device(
            name=f"{torch.get_num_threads()} cores",
            memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            library_bytes=library,
            rates=_without_bf16(fits["fp32"].rates, products) if not in_bf16 else fits["fp32"].rates,
            rates_bf16=fits["bf16"].rates if in_bf16 else None,
            updates=updates,
            product_spread={dtype: square.spread for dtype, square in squares.items()},
            watts=15.0 * torch.get_num_threads(),  # not measured: a server core's usual draw
        ),
        disk=disk,
        inner=measure_loopback(),
        carbon_g_per_kwh=400,
    )
    return Probe(hardware, fits)


def _within(fits: dict[str, Fit]) -> str:
    return ", ".join(
        f"within {fit.median_error:.0%} in {dtype} (median; {fit.worst_error:.0%} at worst)"
        for dtype, fit in fits.items()
    )


def _spread(squares: dict[str, Piece]) -> str:
    return "a product's times spread by " + ", ".join(
        f"{square.spread:.0%} in {dtype} (quartiles of {len(square.times)})"
        for dtype, square in squares.items()
    )


def _without_bf16(rates: Rates, products: dict[str, float]) -> Rates:
    """Rates of a machine on which only the large product was measured in bf16. Convolutions get the same factor."""
    loss = products["bf16"] / products["fp32"]
    changes = {"matrix_bf16": products["bf16"], "convolution_bf16": rates.convolution_fp32 * loss}
    return rates.model_copy(update=changes)


# -------------------- timing


def _square(dtype: torch.dtype, deadline: Deadline) -> Piece:
    """A product of the largest square matrices that this machine multiplies in a short time."""
    found: Piece | None = None
    for size in SQUARES:
        sample = product(size, dtype)
        deadline.check(sample.name)
        cost = sample.trace()  # also the first run, in which libraries get ready
        deadline.check(sample.name)
        found = Piece(sample, cost, _once(sample.run))
        if found.seconds > SQUARE_SECONDS / 8:  # the next one has eight times the work
            break
    assert found is not None
    return found


def _prepared(bf16: bool, deadline: Deadline, on_progress: Report) -> list[Piece]:
    found: list[Piece] = []
    dtype = "bf16" if bf16 else "fp32"
    for sample in samples(bf16=bf16):
        if deadline.used > MAKE[dtype] and (bf16 or len(found) >= LEAST[dtype]):
            break
        expected = 3 * found[-1].seconds if sample.leaves else 0.0  # its forward pass was the one before
        deadline.check(sample.name, expected)
        on_progress(sample.name)
        begun = time.perf_counter()
        cost = sample.trace()
        found.append(Piece(sample, cost, time.perf_counter() - begun))
    return found


def _measure(
    products: Sequence[Piece], pieces: Sequence[Piece], deadline: Deadline, on_progress: Report
) -> None:
    """Run every piece `ROUNDS` times, or once and then as often as half of the limit allows."""
    needed = len(products) + LEAST["fp32"]
    pieces = [*products, *pieces]
    for round_ in range(1, ROUNDS + 1):
        for number, piece in enumerate(pieces, 1):
            if deadline.used > MEASURE and (round_ > 1 or number > needed):
                return
            deadline.check(piece.sample.name, piece.seconds)
            on_progress(f"round {round_} of {ROUNDS}, piece {number} of {len(pieces)}")
            piece.measure()
            if number % BETWEEN == 0:
                for product_ in products:
                    product_.measure()


def _once(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


# -------------------- updates

_OPTIMIZERS: dict[str, tuple[PartOptimizer, torch.dtype]] = {
    "adamw-fp32": (AdamW(clip=1.0), torch.float32),
    "adamw-bf16": (AdamW(clip=1.0), torch.bfloat16),
    "adamw8bit-fp32": (AdamW8bit(clip=1.0), torch.float32),
    "adamw8bit-bf16": (AdamW8bit(clip=1.0), torch.bfloat16),
    "adafactor-fp32": (Adafactor(), torch.float32),
    "adafactor-bf16": (Adafactor(), torch.bfloat16),
}


def _update(optimizer: PartOptimizer, dtype: torch.dtype, deadline: Deadline) -> UpdateRate:
    """The rate of an update, and its cost for each tensor, from a large tensor and a small one."""
    large, small = (_updating(optimizer, dtype, shape, deadline) for shape in ((2048, 4096), (128, 512)))
    rate = (2048 * 4096 - 128 * 512) / max(1e-9, large - small)
    return UpdateRate(rate=rate, tensor_seconds=max(0.0, small - 128 * 512 / rate))


def _updating(
    optimizer: PartOptimizer, dtype: torch.dtype, shape: tuple[int, int], deadline: Deadline
) -> float:
    """Median seconds of an update, over the updates of a quarter of a second, three at least."""
    weights = {"w": torch.randn(shape).mul_(0.02).to(dtype)}
    specs = optimizer.state_specs([TensorSpec("w", shape, dtype)])
    state = {spec.name: torch.zeros(spec.shape, dtype=spec.dtype) for spec in specs}
    optimizer.initialise(weights, state)
    gradient = {"w": torch.randn(shape).mul_(1e-3)}
    times: list[float] = []
    while len(times) < (4 if deadline.used < UPDATE else 2) or (sum(times) < 0.25 and deadline.used < UPDATE):
        deadline.check("updates")
        times.append(
            _once(lambda: optimizer.update(weights, gradient, state, lr=1e-9, steps={"w": 2}, seed=1))
        )
    return median(times[1:])  # the first one warms up
