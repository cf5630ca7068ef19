"""Build the wheel, install it into a clean environment, and use it as somebody does who has only the wheel.

    .venv/bin/python .ci/wheel.py

How clean the environment is: OpenM6 comes from the wheel alone, and all commands run in an empty folder outside
the repository. The other packages are the development environment's own files, linked instead of installed again,
because PyTorch alone takes minutes. Only packages that the wheel's metadata ask for are linked, directly or through
each other. So a package that OpenM6 uses without declaring it is missing here, as it would be for a user.
What this cannot find: a declared range that is too wide, since the linked versions are the pinned ones.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {"report", "search", "serve"}  # what the commands below need, as docs/index.md says
SECONDS = 900  # most that a command may take


def build(folder: Path) -> Path:
    """The wheel of the working tree's files that Git knows or would add; nothing is left in the tree."""
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # a file may be deleted and not yet committed
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(folder / "source")], check=True)
    shutil.rmtree(folder / "source")
    [wheel] = folder.glob("openm6-*.whl")
    return wheel


def needed(requirements: list[str], extras: set[str]) -> dict[str, metadata.Distribution]:
    """Installed packages, by name, that `requirements` with `extras` ask for, and what those ask for in turn."""
    found: dict[str, metadata.Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(requirement, extra) for requirement in requirements for extra in {"", *extras}]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if (text, extra) in done or (
            requirement.marker is not None and not requirement.marker.evaluate({"extra": extra})
        ):
            continue
        done.add((text, extra))
        name = canonicalize_name(requirement.name)
        if name == "openm6":  # an extra that includes another one
            waiting += [(each, more) for each in requirements for more in requirement.extras]
            continue
        found[name] = metadata.distribution(requirement.name)
        asked = found[name].requires or []
        waiting += [(each, more) for each in asked for more in {"", *requirement.extras}]
    return found


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with `wheel`, and links to what it needs. Returns the folder of its programs."""
    venv.create(folder / "environment", with_pip=False, symlinks=True)
    programs = folder / "environment" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--no-index", "--no-compile", str(wheel)], check=True)
    [site] = (folder / "environment").glob("lib/python*/site-packages")
    [installed] = metadata.distributions(name="openm6", path=[str(site)])
    for package in needed(installed.requires or [], EXTRAS).values():
        for name in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            source = Path(str(package.locate_file(name)))
            if source.exists() and source.suffix != ".pth" and not (site / name).exists():
                (site / name).symlink_to(source)
    return programs


class Shell:
    """Runs commands of the clean environment in an empty folder, and says how long each took."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        self.environment = {**kept, "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        print(f"$ {program} {' '.join(arguments)}", flush=True)
        command = [str(self.programs / program), *arguments]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, program: str, *arguments: str) -> str:
        """Its standard output. Raises SystemExit if it fails."""
        began = time.monotonic()
        running = self.start(program, *arguments)
        try:
            said, _ = running.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
            raise SystemExit(f"took more than {SECONDS} s") from None
        if running.returncode:
            raise SystemExit(f"ended with status {running.returncode}\n{said}")
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
        return said


def check(holds: bool, claim: str) -> None:
    if not holds:
        raise SystemExit(f"not true: {claim}")


def try_out(openm6: Shell, version: str) -> None:
    """What the README promises, with few steps."""
    place = Path(openm6("python", "-c", "import openm6; print(openm6.__file__)").strip())
    check(place.is_relative_to(openm6.programs.parent), "OpenM6 comes from the wheel")
    check(openm6("openm6", "--version").split()[1] == version, "the program has the wheel's version")

    few = [
        "steps=2",
        "eval_every=2",
        "eval_steps=1",
        "mix.0.per_step=4",
        "mix.1.per_step=1",
        "mix.2.per_step=1",
    ]
    small = [
        f"model.{key}"
        for key in ("layers=1", "width=32", "ffn=32", "heads=1", "kv_heads=1", "vocab_text=512")
    ]
    openm6("openm6", "quickstart", *few, *small)
    check((openm6.folder / "runs/quickstart/report.html").is_file(), "quickstart writes a report")
    picture = "runs/quickstart/samples/input-0.png"
    check(
        bool(json.loads(openm6("openm6", "caption", picture, "--json"))["output"]), "a caption is not empty"
    )
    check("memory" in openm6("openm6", "plan", "quickstart", "--on", "laptop"), "plan speaks of memory")
    trained = openm6("openm6", "train", "tell", "steps=2", "mix.0.data.path=texts.jsonl", "--json")
    check(json.loads(trained)["steps"] == 2, "a recipe of the package trains by its name")
    openm6("openm6", "search", "index", "shop.csv", "--to", "shop")
    hits = openm6("openm6", "search", "query", picture, "--index", "shop", "-n", "1", "--json")
    check(json.loads(hits)["output"][0]["id"] == "first", f"search finds the same picture first: {hits}")


def try_the_service(openm6: Shell) -> None:
    """It starts, says that it is ready, has its page, and stops when asked to."""
    with openm6.start("openm6", "serve", "--port", "0") as service:
        try:
            assert service.stdout is not None
            address = next(
                word for line in service.stdout for word in line.split() if word.startswith("http")
            )
            await_ready(address.rstrip("/") + "/health/ready")
            for path, contains in (("/", "<html"), ("/openapi.json", "/v1/caption")):
                with urllib.request.urlopen(address.rstrip("/") + path, timeout=60) as answer:
                    check(contains in answer.read().decode(), f"the service has {path}")
            service.terminate()
            service.stdout.read()
            status = service.wait(timeout=60)
            check(status in (0, -signal.SIGTERM), f"the service stops when asked to; its status is {status}")
        finally:
            service.kill()


def await_ready(address: str) -> None:
    """Until the service has opened its catalogue it answers 503."""
    until = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(address, timeout=60):
                return
        except urllib.error.HTTPError as error:
            check(error.code == 503 and time.monotonic() < until, f"the service becomes ready, not {error}")
            time.sleep(0.5)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="openm6-wheel-") as name:
        folder = Path(name)
        wheel = build(folder)
        print(f"{wheel.name}, {wheel.stat().st_size / 2**20:.1f} MiB", flush=True)
        empty = folder / "empty"
        empty.mkdir()
        picture = "runs/quickstart/samples/input-{}.png"
        rows = [f"first,{picture.format(0)},apple", f"second,{picture.format(1)},pear"]
        (empty / "shop.csv").write_text("\n".join(["id,image,title", *rows, ""]), encoding="utf-8")
        (empty / "texts.jsonl").write_text(
            '{"text": "red apple"}\n{"text": "green pear"}\n', encoding="utf-8"
        )
        openm6 = Shell(install(wheel, folder), empty)
        try_out(openm6, wheel.name.split("-")[1])
        try_the_service(openm6)
    print("the wheel works")


if __name__ == "__main__":
    main()
