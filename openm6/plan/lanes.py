"""The timeline of one step: when the lanes compute, read, write and exchange, as a small simulation of events.

The rules are those of the engine (`readahead`). Reads start in the order of use, as far as buffers have room.
Writes follow behind. A buffer keeps its bytes until the room is needed, so a section that comes back soon is not
read again. An I/O lane serves its requests in order. The simulation reports the second of three steps in a row.
That step begins with the buffers and the unfinished writes that the first step left, and reads ahead for the third.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verb = Literal["read", "write"]


@dataclass(frozen=True)
class Channel:
    """The channel over which sections of one tier move. `shared`: reads and writes take turns, as on one disk."""

    name: str
    read: float  # bytes/s
    write: float
    shared: bool
    gain: float = 1.0  # how much faster both are while the other one has work, too (shared channels)

    def lane(self, verb: Verb) -> str:
        return self.name if self.shared else f"{self.name} {verb}"


@dataclass(frozen=True)
class Section:
    """A section of a part that is not in the tier where its layer computes."""

    key: str
    channel: str
    nbytes: float
    kept: bool = True  # in its buffer until the room is needed; else it is moved again for its next use


@dataclass(frozen=True)
class Stretch:
    """A stretch of computing, and the sections that it needs.

    `reads` must have been read before it. `keeps` stay in use after it (until a later stretch frees them). All
    other sections are released at its end. `writes` (read before or not) are stored behind it.
    """

    name: str
    seconds: float
    reads: tuple[Section, ...] = ()
    writes: tuple[Section, ...] = ()
    keeps: tuple[Section, ...] = ()
    frees: tuple[Section, ...] = ()
    exchange_seconds: float = 0.0  # with other devices, before it can compute
    reduce_seconds: float = 0.0  # with other devices, while others compute
    host_seconds: float = 0.0  # of the host after it, while the device computes on


@dataclass(frozen=True)
class Bar:
    lane: str
    name: str
    start: float
    stop: float


@dataclass(frozen=True)
class Timeline:
    """One step. Times are seconds from its beginning."""

    bars: tuple[Bar, ...]
    seconds: float
    read_bytes: Mapping[str, float]  # by channel
    written_bytes: Mapping[str, float]

    def busy(self, lane: str) -> float:
        """Seconds in which a lane works."""
        return sum(bar.stop - bar.start for bar in self.bars if bar.lane == lane)

    @property
    def lanes(self) -> list[str]:
        return list(dict.fromkeys(bar.lane for bar in self.bars))


@dataclass
class _Job:
    verb: Verb
    section: Section
    waits: list[int] = field(default_factory=list)  # works that wait for it


def run(works: Sequence[Stretch], channels: Mapping[str, Channel], buffer_bytes: float) -> Timeline:
    """Simulate a step whose works follow one another, in its steady state."""
    return _Simulation([*works, *works, *works], channels, buffer_bytes, len(works)).run()


class _Simulation:
    def __init__(
        self, works: Sequence[Stretch], channels: Mapping[str, Channel], buffer_bytes: float, second: int
    ) -> None:
        self.works, self.channels, self.second = works, channels, second
        largest = max((_held(work) for work in works), default=0.0)
        self.limit = max(buffer_bytes, largest)
        self.now = 0.0
        self.events: list[tuple[float, int, str]] = []  # (when, number, lane that is free then)
        self.users: dict[str, int] = {}  # of a section in a buffer: works, reads and writes
        self.idle: OrderedDict[str, float] = OrderedDict()
        self.sizes: dict[str, float] = {}  # busy sections
        self.queues: dict[str, deque[_Job]] = {}
        self.serving: dict[str, _Job] = {}
        self.missing: dict[int, int] = {}  # by work: reads that are not done
        self.reading: dict[str, _Job] = {}
        self.ahead = 0  # the next work whose reads are not begun
        self.at = 0  # the work that computes or waits
        self.computing = False
        self.bars: list[Bar] = []
        self.moved: dict[Verb, dict[str, float]] = {"read": {}, "write": {}}
        self.begun = 0.0
        self.network_free = self.host_free = 0.0
        self.count = 0

    def run(self) -> Timeline:
        end = 0.0
        while True:
            self._pump()
            self._serve()
            self._compute()
            if not self.events:
                break
            self.now, _, lane = heapq.heappop(self.events)
            if lane == "compute":
                self._computed()
                if self.at == 2 * self.second:
                    end = max(self.now, self.network_free, self.host_free)
                    break
            elif lane != "network":
                self._moved(lane)
        assert self.at == 2 * self.second, "every work found its reads"
        bars = [
            Bar(bar.lane, bar.name, max(bar.start, self.begun) - self.begun, bar.stop - self.begun)
            for bar in self.bars
            if bar.stop > self.begun
        ]
        bars = [Bar(b.lane, b.name, b.start, min(b.stop, end - self.begun)) for b in bars]
        order = {"compute": 0, "host": 1, "network": 2}
        bars.sort(key=lambda bar: (order.get(bar.lane, 3), bar.lane, bar.start))
        return Timeline(tuple(bars), end - self.begun, self.moved["read"], self.moved["write"])

    # -------------------- buffers

    def _use(self, section: Section) -> None:
        self.users[section.key] = self.users.get(section.key, 0) + 1
        self.sizes[section.key] = section.nbytes
        self.idle.pop(section.key, None)

    def _let_go(self, section: Section) -> None:
        self.users[section.key] -= 1
        if not self.users[section.key]:
            del self.users[section.key]
            size = self.sizes.pop(section.key)
            if section.kept:
                self.idle[section.key] = size

    def _pump(self) -> None:
        """Begin the reads of later stretches, as long as there is room."""
        while self.ahead < len(self.works):
            work = self.works[self.ahead]
            wanted = {s.key: s for s in (*work.reads, *work.writes)}
            room = sum(s.nbytes for key, s in wanted.items() if key not in self.users)
            busy = sum(self.sizes.values()) if room else 0.0
            if room and busy + room > self.limit and self.ahead > self.at:
                return
            here = {s.key for s in work.reads if s.key in self.users or s.key in self.idle}
            for section in wanted.values():
                self._use(section)
            while self.idle and sum(self.idle.values()) + sum(self.sizes.values()) > self.limit:
                self.idle.popitem(last=False)
            absent = [s for s in work.reads if s.key not in here]
            late = [s for s in work.reads if s.key in self.reading]
            self.missing[self.ahead] = len(absent) + len(late)
            for section in late:
                self.reading[section.key].waits.append(self.ahead)
            for section in absent:
                job = _Job("read", section, [self.ahead])
                self.reading[section.key] = job
                self._queue(job)
            self.ahead += 1

    # -------------------- lanes

    def _queue(self, job: _Job) -> None:
        lane = self.channels[job.section.channel].lane(job.verb)
        self.queues.setdefault(lane, deque()).append(job)

    def _serve(self) -> None:
        for lane, queue in self.queues.items():
            if lane in self.serving or not queue:
                continue
            job = queue.popleft()
            channel = self.channels[job.section.channel]
            rate = channel.read if job.verb == "read" else channel.write
            if channel.shared and any(other.verb != job.verb for other in queue):
                rate *= channel.gain
            self.serving[lane] = job
            self._finish(lane, f"{job.verb} {job.section.key}", job.section.nbytes / rate)

    def _finish(self, lane: str, name: str, seconds: float) -> None:
        self.bars.append(Bar(lane, name, self.now, self.now + seconds))
        self.count += 1
        heapq.heappush(self.events, (self.now + seconds, self.count, lane))

    def _moved(self, lane: str) -> None:
        job = self.serving.pop(lane)
        if self.at >= self.second:
            moved = self.moved[job.verb]
            moved[job.section.channel] = moved.get(job.section.channel, 0.0) + job.section.nbytes
        if job.verb == "write":
            self._let_go(job.section)
            return
        del self.reading[job.section.key]
        for work in job.waits:
            self.missing[work] -= 1

    def _compute(self) -> None:
        if self.computing or self.missing.get(self.at, math.inf) > 0:
            return
        if self.at == self.second and self.now < self.begun:
            return
        work = self.works[self.at]
        self.computing = True
        if work.exchange_seconds:
            start = max(self.now, self.network_free)
            self.network_free = start + work.exchange_seconds
            self.bars.append(Bar("network", work.name, start, self.network_free))
            self.bars.append(Bar("compute", work.name, self.network_free, self.network_free + work.seconds))
            self.count += 1
            heapq.heappush(self.events, (self.network_free + work.seconds, self.count, "compute"))
            return
        self._finish("compute", work.name, work.seconds)

    def _computed(self) -> None:
        work = self.works[self.at]
        if work.reduce_seconds:
            start = max(self.now, self.network_free)
            self.network_free = start + work.reduce_seconds
            self.bars.append(Bar("network", f"reduce {work.name}", start, self.network_free))
        if work.host_seconds:
            start = max(self.now, self.host_free)
            self.host_free = start + work.host_seconds
            self.bars.append(Bar("host", work.name, start, self.host_free))
        writes = {section.key for section in work.writes}
        kept = {section.key for section in work.keeps}
        for section in {s.key: s for s in (*work.reads, *work.writes)}.values():
            if section.key in writes:
                self._queue(_Job("write", section))  # in use until it is written
            elif section.key not in kept:
                self._let_go(section)
        for section in work.frees:
            self._let_go(section)
        del self.missing[self.at]
        self.at += 1
        self.computing = False
        if (
            self.at == self.second
        ):  # the next step begins when this one's reductions and updates are done, too
            self.begun = max(self.now, self.network_free, self.host_free)
            self.count += 1
            heapq.heappush(self.events, (self.begun, self.count, "network"))


def _held(work: Stretch) -> float:
    sections = {s.key: s.nbytes for s in (*work.reads, *work.writes, *work.frees)}
    return sum(sections.values())
