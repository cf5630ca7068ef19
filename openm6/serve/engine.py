"""The tasks of the service, one coroutine or job each: a model, a catalogue and a writer behind one batcher."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from anyio.to_thread import run_sync
from PIL import Image

from openm6.decode.live import Beginning, Poem, Sketch, continue_texts, draw_sketches, write_poems
from openm6.decode.pipeline import BATCH, Pipeline
from openm6.search import Hit
from openm6.search.where import parse_where
from openm6.serve.batching import Batcher, Compute, Job, Kind, QueueFull, Report, Stopped
from openm6.serve.errors import ApiError
from openm6.serve.metrics import Metrics
from openm6.serve.settings import Settings
from openm6.serve.shop import Shop
from openm6.serve.writer import Product, Writer

log = logging.getLogger(__name__)

BEAMS = 4  # of a caption
WRITTEN = 32  # texts at a time
LATER = 2  # seconds after which clients may retry while the service starts
LAST = 1.0  # seconds for the model's thread to end, when all who asked have been answered or given up


@dataclass
class Status:
    """The state of the service. `problem` is the reason why it will never be ready."""

    ready: bool = False
    stopping: bool = False
    doing: str = "starting"
    done: int = 0
    total: int = 0
    problem: str | None = None


class Engine:
    """Owns the model's thread. Used as `async with engine.running():`.

    Its methods raise ApiError 503 if too many requests wait, if an answer takes too long, or while the service
    starts or stops. They raise ValueError for a user's mistake.
    """

    def __init__(
        self, m6: Pipeline, settings: Settings, *, shop: Shop | None = None, writer: Writer | None = None
    ) -> None:
        self.m6, self.settings, self._shop, self._writer = m6, settings, shop, writer
        self.metrics = Metrics()
        self.status = Status()
        self.batcher = Batcher(
            max_batch=settings.max_batch, max_queue=settings.max_queue, on_batch=self.metrics.batch
        )
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)
        can = m6.model.config
        self.model_name, self.image_size = m6.folder.resolve().name, can.image_size
        self.draws = m6.image_tokenizer is not None and bool(can.cells)
        self.drawing_size = m6.image_tokenizer.config.image_size if m6.image_tokenizer is not None else 0
        self.candidates = 16 if can.match_dim else 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """Prepares the catalogue in the background. At the end it accepts no more jobs and waits for none."""
        threading.Thread(target=self._prepare, name="catalogue", daemon=True).start()
        try:
            yield self
        finally:
            self.status.stopping = True
            await run_sync(self.batcher.stop, LAST)

    def _prepare(self) -> None:
        def report(doing: str, done: int, total: int) -> None:
            self.status.doing = f"{doing} the catalogue"
            self.status.done, self.status.total = done, total

        try:
            if self._shop is not None:
                self._shop.prepare(report)
            self.status.doing, self.status.ready = "ready", True
        except Exception as error:
            # Clients need not know where things lie on this machine.
            self.status.problem = "the catalogue cannot be used; the service's log has the details"
            if isinstance(error, ValueError):
                log.error("the catalogue cannot be used: %s", error)
            else:
                log.exception("the catalogue cannot be used")

    @property
    def shop(self) -> Shop:
        """The catalogue. Raises ApiError while it is not ready."""
        if self._shop is None:
            raise ApiError(409, "unavailable", "the service has no catalogue")
        self.check_ready()
        return self._shop

    def check_ready(self) -> None:
        """Raises ApiError while the service starts, and if it cannot start."""
        if self.status.problem is not None:
            raise ApiError(503, "unavailable", self.status.problem, retry_after=60)
        if not self.status.ready:
            raise ApiError(503, "starting", f"the service is {self.status.doing}", retry_after=LATER)

    async def check_shop(self) -> None:
        """Check the catalogue again, if there is one. Raises Unavailable if its index is gone."""
        if self._shop is not None:
            await run_sync(self._shop.refresh)

    @property
    def has_shop(self) -> bool:
        return self._shop is not None

    @property
    def shop_note(self) -> str | None:
        """A sentence about the catalogue for visitors."""
        return self._shop.note if self._shop is not None else None

    @property
    def yuan(self) -> bool:
        """Whether the catalogue's prices are known to be in yuan."""
        return self._shop is not None and self._shop.yuan

    @property
    def writer(self) -> Writer | None:
        return self._writer

    # -- pictures and words --------------------------------------------------------------------------------

    async def caption(self, picture: np.ndarray, lang: str) -> str:
        def compute(pictures: Sequence[np.ndarray], _: Sequence[Report]) -> list[str]:
            return self.m6.caption(list(pictures), lang=lang, beams=BEAMS)

        return await self._answer(Kind(("caption", lang), compute, BATCH // BEAMS), picture)

    async def ask(self, picture: np.ndarray, question: str) -> str:
        def compute(asked: Sequence[tuple[np.ndarray, str]], _: Sequence[Report]) -> list[str]:
            return self.m6.ask([each[0] for each in asked], [each[1] for each in asked])

        return await self._answer(Kind("ask", compute), (picture, question))

    async def search(
        self,
        picture: np.ndarray | None,
        text: str | None,
        where: str | None,
        n: int,
        text_weight: float = 0.5,
        after: str | None = None,
    ) -> list[Hit]:
        """Like `Index.query`, but vectors are computed together with those of other requests."""
        index = self.shop.index
        condition = parse_where(where, index.columns) if where else None
        image_D = text_D = words = None
        if picture is not None:
            image_D = await self._answer(_vectors("image_vector", index.encoder.images), picture)
        if text is not None and index.reads_words:
            text_D = await self._answer(_vectors("text_vector", index.encoder.texts), text)
        else:
            words = text
        find = partial(index.find, image_D=image_D, text_D=text_D, words=words, where=condition)
        return await run_sync(partial(find, n=n, text_weight=text_weight, after=after))

    # -- longer tasks: jobs, whose progress can be followed -------------------------------------------------

    def write(self, poem: Poem) -> Job:
        return self._submit(Kind("write", _texts(partial(write_poems, self.m6)), WRITTEN), poem)

    def go_on(self, beginning: Beginning, max_tokens: int) -> Job:
        compute = _texts(partial(continue_texts, self.m6, max_tokens=max_tokens))
        return self._submit(Kind(("continue", max_tokens), compute, WRITTEN), beginning)

    def draw(self, sketch: Sketch) -> Job:
        if not self.draws:
            raise ApiError(409, "unavailable", "the service's model does not draw")

        def compute(sketches: Sequence[Sketch], reports: Sequence[Report]) -> list[Image.Image]:
            def report(share: float) -> None:
                for each in reports:
                    each(share)

            return draw_sketches(
                self.m6, sketches, candidates=self.candidates, rows=BATCH, on_progress=report
            )

        return self._submit(Kind("draw", compute, max(1, BATCH // self.candidates)), sketch)

    def script(self, product: Product) -> Job:
        if self._writer is None:
            raise ApiError(
                409,
                "unavailable",
                "the service has no model that writes scripts: start it with --writer and the folder of a Qwen "
                "checkpoint",
            )
        return self._submit(Kind(("script", product.lang), _texts(self._writer.write), WRITTEN), product)

    async def outcome(self, job: Job) -> Any:
        """The job's result, within the time limit of an answer."""
        try:
            async with asyncio.timeout(self.settings.answer_seconds):
                return await job.result
        except TimeoutError:
            raise self._too_slow() from None
        finally:
            job.result.cancel()

    async def follow(self, job: Job) -> AsyncIterator[Any]:
        """The reports of a job while it is computed. After the last one, `job.result` is set."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.answer_seconds
        while True:
            try:
                event = await asyncio.wait_for(job.events.get(), deadline - loop.time())
            except TimeoutError:
                raise self._too_slow() from None
            if event is None:
                return
            yield event

    async def _answer(self, kind: Kind, item: Any) -> Any:
        return await self.outcome(self._submit(kind, item))

    def _submit(self, kind: Kind, item: Any) -> Job:
        try:
            return self.batcher.submit(kind, item)
        except QueueFull as error:
            raise ApiError(
                503, "queue_full", f"{error}: come again later", retry_after=error.retry_after
            ) from None
        except Stopped as error:
            raise ApiError(503, "stopping", str(error), retry_after=LATER) from None

    def _too_slow(self) -> ApiError:
        seconds = self.settings.answer_seconds
        message = f"the answer took longer than {seconds:g} seconds: the service has too much to do"
        return ApiError(503, "too_slow", message, retry_after=max(LATER, round(seconds / 4)))


def _vectors(task: str, encode: Callable[[Sequence[Any]], np.ndarray]) -> Kind:
    def compute(items: Sequence[Any], _: Sequence[Report]) -> list[np.ndarray]:
        return list(encode(items))

    return Kind(task, compute)


def _texts(write: Callable[..., list[str]]) -> Compute:
    """A function that writes a list of texts, for a batch. It reports each text as it grows."""

    def compute(items: Sequence[Any], reports: Sequence[Report]) -> list[str]:
        return write(items, on_text=lambda i, text: reports[i](text))

    return compute
