"""The facts about a machine that a plan needs: devices, memory, links, rates, power and price.

A profile is a YAML file of this schema. The profiles in `profiles/` come with the package and are found by name.
`openm6 plan --probe` writes a profile of the machine that it runs on.

If the device is the processor itself (`host_link: null`), device memory and host memory are one. Rates are those
that programs reach, not those of data sheets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from openm6.giant.measure.budget import parse_bytes
from openm6.plan.tally import Cost

PROFILES = Path(__file__).parent / "profiles"

Size = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]  # "32GiB", or bytes


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rates(_Strict):
    """The work of a device in one second, by the kinds of work that `Cost` counts."""

    matrix_fp32: PositiveFloat  # FLOP/s of large matrix products
    matrix_bf16: PositiveFloat  # or fp16, where that is what the device has
    convolution_fp32: PositiveFloat  # FLOP/s
    convolution_bf16: PositiveFloat
    matrix_bytes: PositiveFloat  # bytes/s of matrix products that are bound by their operands
    elementwise_bytes: PositiveFloat  # bytes/s of norms, sums, casts, copies
    operation_seconds: NonNegativeFloat  # s, the cost of each operation beside that
    backward_bytes: PositiveFloat | None = None  # bytes/s of them in a backward pass; None = the same


class UpdateRate(_Strict):
    """An optimizer's update of a part, as measured."""

    rate: PositiveFloat  # weights/s
    tensor_seconds: NonNegativeFloat = 0.0  # s, for each tensor beside that


class Device(_Strict):
    name: str
    memory: Size
    library_bytes: Size  # held by libraries after their first computation
    rates: Rates
    rates_bf16: Rates | None = None  # while products are computed in bf16, where that was measured apart
    updates: dict[str, UpdateRate] = {}  # "adamw-fp32": measured; others follow from `elementwise_bytes`
    product_spread: dict[
        str, float
    ] = {}  # "fp32", "bf16": quartiles of the probed product's times over the median
    watts: PositiveFloat  # while it computes


class Host(_Strict):
    """The processor beside a device. In a streamed run it updates weights while the device computes."""

    bytes_per_s: PositiveFloat  # of updates that were not measured: bytes read and written, on all cores
    updates: dict[str, UpdateRate] = {}  # as those of a device


class Link(_Strict):
    """A link from one device to its host, or from one device to another."""

    bytes_per_s: PositiveFloat  # each way
    latency_s: NonNegativeFloat = 0.0


class Disk(_Strict):
    """The disk of one node, used by direct I/O in large blocks."""

    size: Size
    read: PositiveFloat  # bytes/s, when nothing else happens
    write: PositiveFloat
    mixed: PositiveFloat  # bytes/s of both together, half of them read
    operations_per_s: PositiveFloat | None = None  # reported, not used: never the limit with large blocks


class Hardware(_Strict):
    """A machine, or a cluster of equal ones."""

    name: str
    about: str = ""
    nodes: PositiveInt = 1
    devices_per_node: PositiveInt = 1
    device: Device
    host_memory: Size | None = None  # of a node; None = that of the device
    host_link: Link | None = None  # None = the device computes in host memory
    host: Host | None = None  # beside a device; a plan of a streamed run on one device needs it
    disk: Disk | None = None
    inner: Link | None = None  # from device to device, inside a node
    outer: Link | None = None  # from device to device of another node, all of a node's devices at work
    node_watts: NonNegativeFloat = 0.0  # of a node without its devices
    facility: float = Field(default=1.0, ge=1)  # power of the building over that of the machines (PUE)
    carbon_g_per_kwh: NonNegativeFloat = 0.0
    price_per_node_hour: NonNegativeFloat = 0.0
    currency: str = "USD"
    straggle: NonNegativeFloat = 0.0  # standard deviation of a device's step time over its mean
    failure_hours: PositiveFloat | None = None  # mean time between failures of one node
    restart_seconds: NonNegativeFloat = 300.0  # from a failure to the first step after it

    @property
    def devices(self) -> int:
        return self.nodes * self.devices_per_node

    @property
    def host_bytes_per_device(self) -> int:
        """One device's share of the host memory; 0 if the device computes in it."""
        if self.host_link is None or self.host_memory is None:
            return 0
        return self.host_memory // self.devices_per_node

    @property
    def has_three_tiers(self) -> bool:
        """Whether this is one device beside its host, which is what the engine streams to. It knows no clusters of
        devices."""
        return self.host_link is not None and self.devices == 1

    @property
    def network(self) -> Link | None:
        """The link over which devices exchange data: the slowest one on the way. None for a single device."""
        if self.devices == 1:
            return None
        return self.outer if self.nodes > 1 else self.inner

    @property
    def watts(self) -> float:
        """Power of all devices while they compute, with that of the building."""
        return self.facility * self.nodes * (self.node_watts + self.devices_per_node * self.device.watts)

    def resized(self, devices: int) -> Hardware:
        """The same machines, as many as `devices` need. A node that is used partly counts as a whole."""
        if devices < self.devices_per_node:
            return self.model_copy(update={"nodes": 1, "devices_per_node": devices})
        return self.model_copy(update={"nodes": -(-devices // self.devices_per_node)})

    def seconds_by_kind(self, cost: Cost, *, bf16: bool) -> dict[str, float]:
        """Seconds of each kind of work on one device, in a step with products in bf16 or in fp32.

        The kinds are "matrix products", "convolutions", "element-wise work" and "dispatch".
        """
        rates = (self.device.rates_bf16 if bf16 else None) or self.device.rates
        return {
            "matrix products": cost.matrix_fp32 / rates.matrix_fp32
            + cost.matrix_bf16 / rates.matrix_bf16
            + cost.matrix_bytes / rates.matrix_bytes,
            "convolutions": cost.convolution_fp32 / rates.convolution_fp32
            + cost.convolution_bf16 / rates.convolution_bf16,
            "element-wise work": cost.elementwise_bytes / rates.elementwise_bytes
            + cost.backward_bytes / (rates.backward_bytes or rates.elementwise_bytes),
            "dispatch": cost.operations * rates.operation_seconds,
        }

    def update_seconds(
        self, kind: str, weights: float, *, tensors: int, bytes_per_weight: float, on_host: bool = False
    ) -> float:
        """Time of an optimizer's update, on the device or `on_host`, beside it. `bytes_per_weight` is the number of
        bytes that it reads and writes.

        Raises ValueError if the profile does not describe the host.
        """
        if on_host and self.host is None:
            raise ValueError(
                f"the profile {self.name} does not say how fast its host updates weights, which a streamed run on "
                "a device needs: add `host: {bytes_per_s: ...}`, or measure the machine with --probe"
            )
        host = self.host if on_host else None
        measured = (host or self.device).updates.get(kind)
        if measured is None:
            rate = host.bytes_per_s if host else self.device.rates.elementwise_bytes
            return weights * bytes_per_weight / rate
        return weights / measured.rate + tensors * measured.tensor_seconds


def profile_names() -> list[str]:
    """The names of the profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))
