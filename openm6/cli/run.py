"""openm6 run: runs any registered task on records. Your own task needs no verb of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from openm6.cli.arguments import check_writable, pair
from openm6.cli.draw import name_files
from openm6.cli.output import Device, Json, MaxTokens, Model, Seed, show

Record = dict[str, object]


def run(
    task: Annotated[str | None, typer.Argument(help="A registered task; without it all are listed.")] = None,
    fields: Annotated[
        list[str] | None, typer.Argument(help="One record: FIELD=VALUE, such as image=a.png lang=zh.")
    ] = None,
    records: Annotated[
        Path | None, typer.Option(help="Many records: a file with a JSON object on each line.")
    ] = None,
    beams: Annotated[int, typer.Option(help="Beams for a text; the best one is printed.")] = 4,
    max_tokens: MaxTokens = 40,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sample at this temperature; default: beams for a text, 0.8 for a picture."),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the likeliest words of this share.")
    ] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", help="Where pictures go: a PNG file, or a folder/.")
    ] = "made.png",
    seed: Seed = 0,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Run any task on records: it reads the fields of its instruction and writes the target.

    openm6 run ask image=apple.png "question=what colour is it?" -m runs/mine
    """
    if task is None:
        _list_tasks(as_json=as_json)
        return
    from openm6.decode.any_task import fields_of
    from openm6.decode.generate import Sampling

    kinds = fields_of(task)  # an unknown task is found before the model is opened
    given = _records(fields or [], records)
    if not given and {} in kinds:
        given = [{}]  # it reads nothing
    if not given:
        needs = " or ".join(" ".join(f"{name}=..." for name in each) for each in kinds)
        raise ValueError(f"the task {task} reads {needs}: give the fields, or a file with --records")
    paths = name_files(out, len(given)) if _draws(task) else []
    for path in paths:
        check_writable(path)
    sampling = None
    if temperature is not None or top_p is not None:
        sampling = Sampling(
            temperature=1.0 if temperature is None else temperature, top_p=1.0 if top_p is None else top_p
        )
    import openm6

    outputs = openm6.load(model, device=device).run(
        task, given, beams=beams, max_tokens=max_tokens, sampling=sampling, seed=seed
    )
    for i, (record, output) in enumerate(zip(given, outputs, strict=True)):
        if paths:
            output.save(paths[i])
            output = str(paths[i])
        elif not isinstance(output, str):
            output = [round(float(value), 6) for value in output]
        line = output if isinstance(output, str) else " ".join(f"{value:g}" for value in output)
        result = {"input": record, "output": output, "task": task, "seed": seed + i}
        show(result, as_json=as_json, line=f"{i + 1}: {line}" if len(given) > 1 else line)


def _draws(task: str) -> bool:
    from openm6.tasks import TASKS

    return TASKS[task].layouts[0].target[0].kind == "CODES"


def _records(fields: Sequence[str], path: Path | None) -> list[Record]:
    """The record of the command line, or the records of the file. Paths of their pictures start at the file's
    folder.
    """
    if path is None:
        one = dict[str, object](pair(each, "a field", "FIELD=VALUE, such as image=a.png") for each in fields)
        return [one] if one else []
    if fields:
        raise ValueError(f"--records has the fields of every record; leave out {fields[0]}")
    found: list[Record] = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is no JSON object: {line[:60]}")
        found.append({name: _beside(path, value) for name, value in record.items()})
    if not found:
        raise ValueError(f"{path} has no records")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text") from error


def _beside(path: Path, value: Any) -> object:
    """Resolve a file name against the file's folder, if it exists there and not in the current folder."""
    if isinstance(value, str) and value and not Path(value).is_file() and (path.parent / value).is_file():
        return str(path.parent / value)
    return value


def _list_tasks(*, as_json: bool) -> None:
    from openm6.decode.any_task import fields_of
    from openm6.tasks import TASKS

    for name, each in TASKS.items():
        reads: list[Mapping[str, str]] = list(fields_of(name))
        result = {"input": name, "output": list(each.instructions), "reads": reads}
        show(result, as_json=as_json, line="\n".join(f"{name:14} {line}" for line in each.instructions))
