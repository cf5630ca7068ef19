"""The application: the guard, the routes, the page, health and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, select_autoescape
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel

import openm6
from openm6.decode.folder import shipped_checkpoint
from openm6.serve.engine import LATER, Engine
from openm6.serve.errors import ApiError, add_handlers, possible
from openm6.serve.guard import Guard
from openm6.serve.head import HeadAsGet
from openm6.serve.routes import router
from openm6.serve.uploads import PictureReader

PAGE = Path(__file__).parent / "page"
PARTS = ("look", "find", "draw", "write")
SUGGESTIONS = ("strawberry", "吉他", "basketball", "elephant", "高跟鞋", "camera")  # of the emoji
FORMS = ("五绝", "七绝", "五律", "七律", "词", "古")


class Health(BaseModel):
    status: str


def create_app(engine: Engine) -> FastAPI:
    """The ASGI application of an engine. The engine runs as long as the application does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.running():
            yield

    app = FastAPI(
        title="OpenM6",
        version=openm6.__version__,
        description="One model that captions, answers, draws, writes and finds.",
        lifespan=lifespan,
        docs_url=None,  # they would load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.engine = engine
    app.state.reader = PictureReader(engine.settings.max_pixels)
    app.add_middleware(HeadAsGet)
    app.add_middleware(Guard, settings=engine.settings, metrics=engine.metrics)
    add_handlers(app)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=PAGE / "static"), name="static")
    templates = Environment(
        loader=FileSystemLoader(PAGE / "templates"), autoescape=select_autoescape(), trim_blocks=True
    )

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        can = {"find": engine.has_shop, "draw": engine.draws}
        html = templates.get_template("index.html").render(
            version=openm6.__version__,
            model=engine.model_name,
            writer=engine.writer.name if engine.writer is not None else None,
            parts=[part for part in PARTS if can.get(part, True)],
            candidates=engine.candidates,
            side=engine.drawing_size,
            forms=FORMS,
            catalogue_note=engine.shop_note,
            currency="¥" if engine.yuan else "",
            suggestions=SUGGESTIONS if engine.shop_note else (),
            max_upload=engine.settings.max_upload,
            shipped=engine.m6.folder == shipped_checkpoint(),
            root=engine.settings.root_path,
        )
        return HTMLResponse(html, headers={"Cache-Control": "no-cache"})

    @app.get("/health/live", summary="Whether the process answers", responses=possible(400))
    async def live() -> Health:
        return Health(status="live")

    @app.get("/health/ready", summary="Whether it takes requests of every kind", responses=possible(400, 503))
    async def ready() -> Health:
        if engine.status.stopping:
            raise ApiError(503, "stopping", "the service is stopping", retry_after=LATER)
        engine.check_ready()
        await engine.check_shop()
        return Health(status="ready")

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        return Response(engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app
