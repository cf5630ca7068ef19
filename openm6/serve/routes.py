"""The operations of the HTTP interface, /v1/...; each calls the engine."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from typing import Annotated, Any
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel

import openm6
from openm6.decode.live import Beginning, Poem, Sketch
from openm6.search.store import Unavailable
from openm6.search.values import Attributes
from openm6.serve import answers
from openm6.serve.answers import MAX_TEXT, Lang
from openm6.serve.batching import Job
from openm6.serve.conditional import is_known
from openm6.serve.engine import Engine
from openm6.serve.errors import ApiError, as_api_error, possible
from openm6.serve.events import STREAMED, event, event_response, wants_events
from openm6.serve.forms import FormRoute
from openm6.serve.presence import while_present
from openm6.serve.uploads import PictureReader
from openm6.serve.writer import Product

SIDE = 256  # pixels of a drawing as it is handed out; the model draws fewer

router = APIRouter(prefix="/v1", responses=possible(400, 401, 500), route_class=FormRoute)
WITH_PICTURE = possible(403, 408, 413, 422, 503)
WITH_TEXT = possible(403, 408, 409, 413, 422, 503)


def _engine(request: Request) -> Engine:
    return request.app.state.engine


def _reader(request: Request) -> PictureReader:
    return request.app.state.reader


Asked = Annotated[Engine, Depends(_engine)]
Reader = Annotated[PictureReader, Depends(_reader)]
Picture = Annotated[UploadFile, File(description="PNG, JPEG, WebP, GIF, BMP, TIFF, PPM or AVIF")]
ItemId = Annotated[answers.Id, Query()]


@router.get("/about", summary="What the service is and how far it has started")
async def about(request: Request, engine: Asked) -> answers.About:
    status, settings = engine.status, engine.settings
    catalogue, problem = None, status.problem
    if status.ready and engine.has_shop:
        shop = engine.shop
        try:
            await engine.check_shop()
            facets = [answers.FacetAbout.model_validate(each, from_attributes=True) for each in shop.facets]
            catalogue = answers.Catalogue(items=shop.count, facets=facets, reads_words=shop.index.reads_words)
        except Unavailable as error:
            problem = as_api_error(error, request).detail
    return answers.About(
        version=openm6.__version__,
        model=engine.model_name,
        writer=engine.writer.name if engine.writer is not None else None,
        ready=status.ready and problem is None,
        doing=status.doing,
        done=status.done,
        total=status.total,
        problem=problem,
        max_upload=settings.max_upload,
        max_pixels=settings.max_pixels,
        catalogue=catalogue,
    )


@router.post("/caption", summary="What a picture shows", responses=WITH_PICTURE)
async def caption(
    request: Request, engine: Asked, reader: Reader, image: Picture, lang: Annotated[Lang, Form()] = "en"
) -> answers.Caption:
    picture = await reader.read(request, image, engine.image_size)
    return answers.Caption(text=await while_present(request, engine.caption(picture, lang)), lang=lang)


@router.post("/ask", summary="The answer to a question about a picture", responses=WITH_PICTURE)
async def ask(
    request: Request,
    engine: Asked,
    reader: Reader,
    image: Picture,
    question: Annotated[str, Form(min_length=1, max_length=MAX_TEXT)],
) -> answers.Answer:
    picture = await reader.read(request, image, engine.image_size)
    return answers.Answer(text=await while_present(request, engine.ask(picture, question)))


@router.post(
    "/search",
    summary="Items of the catalogue like a picture, a text, or both; or all that pass a filter",
    responses=WITH_PICTURE | possible(409),
)
async def search(
    request: Request,
    engine: Asked,
    reader: Reader,
    image: Annotated[UploadFile | None, File()] = None,
    text: Annotated[str | None, Form(max_length=MAX_TEXT)] = None,
    where: Annotated[
        str | None, Form(max_length=1000, description="A filter: category = 'objects' and price < 100")
    ] = None,
    n: Annotated[int, Form(ge=1, le=100)] = 24,
    text_weight: Annotated[float, Form(ge=0, le=1, description="With both: the text's share")] = 0.5,
    after: Annotated[
        answers.Id | None, Form(description="Without picture and text: the id after which the page begins")
    ] = None,
) -> answers.Found:
    index, picture = engine.shop.index, None
    if image is not None:
        picture = await reader.read(request, image, index.encoder.image_size)
    request.scope["openm6.body_done"]()
    text, where = (text or "").strip() or None, (where or "").strip() or None
    hits = await while_present(request, engine.search(picture, text, where, n, text_weight, after))
    by_id = picture is None and text is None
    return answers.Found(
        hits=[
            answers.FoundItem(
                **_item(engine, hit.id, hit.attributes), score=hit.score, similarity=hit.similarity
            )
            for hit in hits
        ],
        order="id" if by_id else "words" if picture is None and not index.reads_words else "similarity",
        count=await run_sync(index.count, where) if by_id else None,
        next=hits[-1].id if by_id and len(hits) == n else None,
    )


@router.get("/item", summary="An item of the catalogue", responses=possible(404, 409, 422, 503))
async def item(engine: Asked, id: ItemId) -> answers.Item:
    return answers.Item(**_item(engine, id, await _attributes(engine, id)))


@router.get(
    "/item/picture",
    summary="A small picture of an item",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {}}},
        304: {"description": "The picture is the one that the client has"},
        **possible(404, 409, 422, 503),
    },
)
async def item_picture(request: Request, engine: Asked, id: ItemId) -> Response:
    found = await run_sync(engine.shop.thumbnail, id)
    if found is None:
        raise ApiError(404, "not_found", "there is no picture of such an item", field="id")
    # A browser may keep it, but asks each time whether it has changed.
    headers = {
        "ETag": f'"{found.tag}"',
        "Last-Modified": formatdate(found.modified, usegmt=True),
        "Cache-Control": "private, no-cache",
    }
    if is_known(request.headers, found.tag, found.modified):
        return Response(status_code=304, headers=headers)
    return Response(found.png, media_type="image/png", headers=headers)


@router.post(
    "/draw",
    summary="A picture for a text",
    response_model=answers.Drawing,
    responses={**STREAMED, **WITH_TEXT},
)
async def draw(request: Request, engine: Asked, body: answers.DrawRequest) -> Any:
    job = engine.draw(Sketch(body.text, body.seed))

    def answer(image: Image.Image) -> answers.Drawing:
        file = io.BytesIO()
        image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        return answers.Drawing(text=body.text, seed=body.seed, picture=f"data:image/png;base64,{data}")

    return await _respond(
        request, engine, job, answer, lambda share, _: event("progress", {"share": round(share, 4)})
    )


@router.post(
    "/write", summary="A Chinese poem", response_model=answers.Written, responses={**STREAMED, **WITH_TEXT}
)
async def write(request: Request, engine: Asked, body: answers.PoemRequest) -> Any:
    job = engine.write(Poem(body.title, body.form, body.author, body.seed))
    return await _written(request, engine, job, engine.model_name)


@router.post(
    "/continue",
    summary="A text, gone on with",
    response_model=answers.Written,
    responses={**STREAMED, **WITH_TEXT},
)
async def go_on(request: Request, engine: Asked, body: answers.ContinueRequest) -> Any:
    job = engine.go_on(Beginning(body.text, body.seed), body.max_tokens)
    return await _written(request, engine, job, engine.model_name)


@router.post(
    "/script",
    summary="What the host of a live stream says of an item",
    response_model=answers.Written,
    responses={**STREAMED, **WITH_TEXT, **possible(404)},
)
async def script(request: Request, engine: Asked, body: answers.ScriptRequest) -> Any:
    attributes = await _attributes(engine, body.item)
    facts = engine.shop.facts(body.item, attributes, body.lang)
    category = str(attributes.get("category") or "")
    job = engine.script(Product(facts, category, body.lang, body.seed, engine.yuan))
    assert engine.writer is not None
    return await _written(request, engine, job, engine.writer.name)


async def _attributes(engine: Engine, id: str) -> Attributes:
    attributes = await run_sync(engine.shop.item, id)
    if attributes is None:
        raise ApiError(404, "not_found", "the catalogue has no item of this id", field="id")
    return attributes


def _item(engine: Engine, id: str, attributes: Attributes) -> dict[str, Any]:
    shop, root = engine.shop, engine.settings.root_path
    has_picture = shop.thumbnails.folder is not None and isinstance(attributes.get("image"), str)
    return {
        "id": id,
        "name": shop.label(id, attributes),
        "attributes": attributes,
        "picture": f"{root}{router.prefix}/item/picture?id={quote(id, safe='')}" if has_picture else None,
    }


async def _written(request: Request, engine: Engine, job: Job, by: str) -> Any:
    def added(text: str, before: str) -> str:
        # The last bytes of a character may change text that was already sent: then all of it is sent again.
        if text.startswith(before):
            return event("text", {"text": text[len(before) :]})
        return event("text", {"text": text, "anew": True})

    return await _respond(request, engine, job, lambda text: answers.Written(text=text, by=by), added)


async def _respond(
    request: Request,
    engine: Engine,
    job: Job,
    answer: Callable[[Any], BaseModel],
    show: Callable[[Any, Any], str],
) -> Any:
    """The job's result: at once, or after events with the job's reports if the client wants events.

    `show` makes an event of a report and the report before it ("" at first).
    """
    if not wants_events(request):
        return answer(await while_present(request, engine.outcome(job)))

    async def events() -> AsyncIterator[str]:
        before: Any = ""
        try:
            yield event("queued", {"waiting": engine.batcher.waiting})
            async for report in engine.follow(job):
                yield show(report, before)
                before = report
            yield event("done", answer(job.result.result()))
        except Exception as error:
            yield event("error", as_api_error(error, request).content())
        finally:
            job.result.cancel()

    return event_response(events())
