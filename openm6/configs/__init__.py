"""The recipes that come with the package: one YAML file each, found by its name."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

RECIPES = Path(__file__).parent


def find_recipe(name: str) -> Path:
    """The YAML file at that path, or the shipped recipe of that name. Raises ValueError if there is neither."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {each.stem: each for each in sorted(RECIPES.glob("*.yaml"))}
    if path.name.removesuffix(".yaml") in shipped and path.parent.name in ("", "configs"):
        return shipped[path.name.removesuffix(".yaml")]
    near = get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the package has {', '.join(shipped) or 'none'}"
    raise ValueError(f"there is no recipe '{name}', neither as a file nor in the package; {hint}")
