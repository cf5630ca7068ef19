"""All tasks of M6, by name."""

from openm6.tasks.ask import ASK
from openm6.tasks.caption import CAPTION
from openm6.tasks.denoise import IMAGE_DENOISE, TEXT_DENOISE
from openm6.tasks.draw import DRAW
from openm6.tasks.match import MATCH, MATCH_ASTRAY, MATCH_BEGUN
from openm6.tasks.task import Task
from openm6.tasks.write import LM, WRITE

TASKS: dict[str, Task] = {
    task.name: task
    for task in (CAPTION, ASK, DRAW, WRITE, MATCH, MATCH_BEGUN, MATCH_ASTRAY, LM, TEXT_DENOISE, IMAGE_DENOISE)
}

__all__ = ["TASKS", "Task"]
