"""The live display of a training run: a bar, the loss below it, and a row whenever held-out losses are measured.

Without a terminal (a pipe, a log file) the bar becomes a line after every twentieth of the run. `Waiting` announces
work that takes longer than a step: measuring, saving, and everything after the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from openm6.train.config import RunConfig
    from openm6.train.image_tokenizer import ImageTokenizerRunConfig

STAGES = {"pseudo": "Pseudo Giant", "real": "Real Giant"}
LINES = 20  # of training in a log file


class TrainingDisplay:
    """`with TrainingDisplay(config) as display: train(config, run_dir, on_progress=display.update)`"""

    def __init__(self, config: RunConfig | ImageTokenizerRunConfig, *, console: Console | None = None):
        self.config = config
        self.console = console or Console(highlight=False)
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,}/{task.total:,}"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
            speed_estimate_period=300,  # seconds; updates may be half a minute apart
        )
        self.task = self.bar.add_task("preparing", total=config.steps)
        self.note = Text("reading the data", style="dim")
        self.live = Live(
            console=self.console, get_renderable=self._picture, transient=True, refresh_per_second=4
        )
        self.tasks: list[str] = []  # columns of the table of held-out losses
        self.printed = -1  # the last twentieth with a line
        self.announced: set[str] = set()  # pauses that have a line in a log file

    def _picture(self) -> Group:
        return Group(self.bar, self.note)

    def __enter__(self) -> TrainingDisplay:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def update(self, line: Mapping[str, Any]) -> None:
        """Show one metrics line."""
        if line.get("stage"):
            self.bar.update(self.task, description=STAGES[line["stage"]])
        line = {"time": self.bar.tasks[0].elapsed, **line}
        if line.get("event") == "doing":
            self._doing(line["text"])
        elif line.get("event") == "eval":
            self._held_out(line)
        elif line.get("event") == "delink":
            layers = getattr(self.config.model, "layers", "")
            self._say(f"{_at(line)}  delinked: each of the {layers} layers has a slot of its own now")
            self._placement(line)
        elif line.get("event") == "placement":
            self._placement(line)
        elif line.get("psnr") is not None:
            self._say(f"{_at(line)}  {line['psnr']:.2f} dB on unseen pictures")
        elif line.get("loss") is not None:
            self._train(line)
        self.bar.update(self.task, completed=line["step"])

    def _doing(self, text: str) -> None:
        """Show why the run takes no steps now: below the bar, and once in a log file."""
        self.note = Text(text, style="dim")
        if not self.console.is_terminal and text not in self.announced:
            self.announced.add(text)
            self._say(f"{'':17}{text} ...")

    def _train(self, line: Mapping[str, Any]) -> None:
        stage = STAGES.get(line.get("stage", ""), "training")
        shown = [f"loss {line['loss']:.3f}"]
        if line.get("tokens_per_s"):
            shown.append(f"{line['tokens_per_s']:,.0f} tokens/s")
        if line.get("rss_bytes"):
            of = f" of {line['budget_bytes'] / 2**30:.1f}" if line.get("budget_bytes") else ""
            shown.append(f"{line['rss_bytes'] / 2**30:.1f}{of} GiB")
        if line.get("skipped"):
            shown.append(f"{line['skipped']} steps skipped")
        if line.get("bad_records"):
            shown.append(f"{line['bad_records']} bad records")
        self.bar.update(self.task, description=stage)
        traffic = _traffic(line)
        self.note = Text("\n".join("  ".join(each) for each in (shown, traffic) if each), style="dim")
        twentieth = line["step"] * LINES // self.config.steps
        if not self.console.is_terminal and twentieth > self.printed:
            self.printed = twentieth
            self._say(f"{_at(line)}  {stage}, {', '.join(shown)}")
            if traffic:
                self._say(f"{'':17}{', '.join(traffic)}")

    def _placement(self, line: Mapping[str, Any]) -> None:
        for each in (line.get("placement") or "").splitlines():
            self._say(f"{'':17}{each}", style="dim")

    def _held_out(self, line: Mapping[str, Any]) -> None:
        losses = {k[4:-5]: v for k, v in line.items() if k.startswith("val_") and k.endswith("_loss")}
        if not losses:
            return
        if not self.tasks:
            from openm6.tasks import TASKS

            self.tasks = sorted(losses, key=lambda name: [*TASKS, name].index(name))
            self._say(header(self.tasks, self.console.width), style="bold")
        self._say(row(line, losses, self.tasks, self.console.width))
        if line["step"] == 0:
            self.note = Text("first steps", style="dim")

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)


class Waiting:
    """Shows the progress of work without steps: `with Waiting(console) as say: say("drawing pictures, 2 of 5")`.

    A terminal shows the latest text beside a spinner. A log file gets one line for each text.
    """

    def __init__(self, console: Console):
        self.console = console
        self.status = console.status("")

    def __enter__(self) -> Callable[[str], None]:
        if self.console.is_terminal:
            self.status.start()
        return self._say

    def __exit__(self, *_: object) -> None:
        self.status.stop()

    def _say(self, text: str) -> None:
        if self.console.is_terminal:
            self.status.update(Text(text, style="dim"))
        else:
            self.console.print(Text(f"{'':17}{text} ..."), soft_wrap=True)


def _traffic(line: Mapping[str, Any]) -> list[str]:
    """The traffic figures of a streamed run; empty for a run in memory."""
    if line.get("wait_share") is None:
        return []
    return [
        f"computing {1 - line['wait_share']:.0%}",
        f"read {line['read_gb_per_s']:.2f}, write {line['write_gb_per_s']:.2f} GB/s",
        f"{line['total_written_bytes'] / 1e9:,.0f} GB written",
    ]


def header(tasks: Sequence[str], width: int) -> str:
    """The head of the table of held-out losses, no wider than the terminal."""
    return "   time    step  held-out loss" + _cells(tasks, tasks, width)


def row(line: Mapping[str, Any], losses: Mapping[str, float], tasks: Sequence[str], width: int) -> str:
    """A row of that table: one evaluation."""
    values = [f"{losses[task]:.3f}" if losses.get(task) is not None else "-" for task in tasks]
    return f"{_at(line)}  {STAGES[line['stage']]:13}" + _cells(values, tasks, width)


def _cells(values: Sequence[str], tasks: Sequence[str], width: int) -> str:
    """The values below their tasks, as many as fit into the width."""
    text, room = "", width - 31
    for value, task in zip(values, tasks, strict=True):
        cell = f"{value:>{max(5, len(task)) + 2}}"
        if len(text) + len(cell) > room:
            break
        text += cell
    return text


def _at(line: Mapping[str, Any]) -> str:
    return f"{clock(line.get('time') or 0.0):>7} {line['step']:>7,}"


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
