"""openm6 serve: serves all tasks over HTTP, with a page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from openm6.cli.output import Device, Model

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine only with a key.")] = (
        "127.0.0.1"
    ),
    index: Annotated[
        str | None,
        typer.Option(help="Folder or Milvus address that openm6 search index made; default: emoji."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="With --index: the folder where the paths in its column `image` start."),
    ] = None,
    yuan: Annotated[
        bool, typer.Option("--yuan", help="With --index: its prices are in yuan; cards and scripts say so.")
    ] = False,
    writer: Annotated[
        Path | None,
        typer.Option(
            help="The writer of scripts: the folder of a Qwen3, Qwen2 or Llama checkpoint; default: a small M6."
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="OPENM6_API_KEY", help="Every request needs this key; better in the environment."
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Another host name of the service, beside localhost; needed behind a proxy."),
    ] = None,
    root_path: Annotated[
        str, typer.Option(help="The path below which a proxy offers the service, such as /shop.")
    ] = "",
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait for the model.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Requests that the model computes together.")] = 16,
    upload: Annotated[str, typer.Option(help="Largest upload.")] = "8MiB",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Serve the model over HTTP, with a page for the browser.

    openm6 serve --open
    """
    if host not in LOOPBACK and api_key is None:
        raise ValueError(f"--host {host} opens the service to the network: give it an --api-key")
    if index is None and (pictures is not None or yuan):
        option = "--pictures" if pictures is not None else "--yuan"
        raise ValueError(f"{option} goes with --index; the embedded catalogue has its own")
    try:
        from openm6.serve import server
    except ImportError as error:
        raise ValueError(
            f"serve needs the extra serve ({error.name} is missing): pip install 'openm6[serve]'"
        ) from error
    from pydantic import ValidationError

    import openm6
    from openm6.giant.measure.budget import parse_bytes
    from openm6.serve.catalogue import embedded_shop
    from openm6.serve.engine import Engine
    from openm6.serve.settings import Settings
    from openm6.serve.shop import Shop
    from openm6.serve.writer import open_writer, shipped_writer

    try:
        settings = Settings(
            api_key=api_key,
            hosts=frozenset(name or ()),
            root_path=root_path,
            max_queue=queue,
            max_batch=batch,
            max_upload=parse_bytes(upload),
        )
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {message}") from error
    bound = server.listen(host, port)
    port = bound.getsockname()[1]
    shop = (
        embedded_shop(device=device)
        if index is None
        else Shop(index, pictures=pictures, yuan=yuan, device=device)
    )
    engine = Engine(
        shop.pipeline if shop.pipeline is not None and model is None else openm6.load(model, device=device),
        settings,
        shop=shop,
        writer=shipped_writer(device=device) if writer is None else open_writer(writer, device=device),
    )
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    if shop.remark is not None:
        print(f"openm6: {shop.remark}", file=sys.stderr)

    def announce() -> None:
        print(f"OpenM6 answers at {address} (Ctrl+C ends it)", flush=True)
        if open_page:
            import webbrowser

            webbrowser.open(address)

    try:
        server.run(engine, bound, on_ready=announce)
    except KeyboardInterrupt:  # uvicorn raises it again at its end
        print("OpenM6 has stopped")
