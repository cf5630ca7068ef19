import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from openm6.train import report as module
from openm6.train.report import write_report

NASTY = '<script>alert("x")</script> & 春'


def line(step, delink=40):
    return {
        "step": step,
        "tokens": step * 1000,
        "time": step * 2.0,
        "stage": "pseudo" if step <= delink else "real",
        "loss": 4 - step / 50,
        "loss_caption": 3 - step / 50,
        "lr": 1e-3,
        "grad_norm": None if step == 20 else 1.0,
        "tokens_per_s": 500.0,
        "rss_bytes": 2**30 + step,
        "skipped": 2 if step >= 60 else 0,
        "bad_records": 0,
    }


def fake_run(run_dir, *, config=f"name: '{NASTY}'\n", samples=None, end=100):
    lines = []
    for step in range(0, end + 1, 10):
        lines.append(line(step))
        if step % 50 == 0:
            lines.append(
                {"step": step, "time": step * 2.0, "event": "eval", "val_caption_loss": 3.5 - step / 40}
            )
        if step == 40:
            # Measured on both sides of the delink, at the same step.
            lines.append({"step": 40, "time": 80.2, "event": "eval", "val_caption_loss": 2.5})
            lines.append({"step": 40, "time": 80.5, "event": "delink", "stage": "real"})
            lines.append({"step": 40, "time": 80.8, "event": "eval", "val_caption_loss": 2.4})
    run_dir.mkdir(exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    (run_dir / "config.yaml").write_text(config, encoding="utf-8")
    if samples is not None:
        (run_dir / "samples").mkdir(exist_ok=True)
        (run_dir / "samples" / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    return run_dir


def picture(path, size=64):
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 4), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def sample(task, **more):
    empty = {
        "lang": "en",
        "input": "",
        "input_image": None,
        "output": "",
        "output_image": None,
        "reference": None,
    }
    return {"task": task, "step": 100, **empty, **more}


class Page(HTMLParser):
    """Collects tags, attributes and text; complains about tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br", "path", "use"})

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "defs"):
            self.text += data + " "


@pytest.fixture
def no_charts(monkeypatch):
    """As on an installation without the extra: the page is made, and quickly."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_a_whole_page(tmp_path):
    samples = [
        sample("caption", input_image="a.png", output=NASTY, reference="a cat"),
        sample("caption", lang="zh", input_image="a.png", output="猫", reference="猫"),
        sample("ask", input_image="gone.png", input="what is it?", output="a cat", reference="a dog"),
        sample("match", input_image="a.png", output="red apple (0.71)", reference="red apple"),
        sample("draw", input="紅蘋果", lang="zh", output_image="drawing.png"),
        sample(
            "write", lang="zh", input="靜夜思", output="床前明月光，\n疑是地上霜。", reference="床前看月光"
        ),
        sample("sing", input="la", output="lalala"),
    ]
    run = fake_run(tmp_path / "run", samples=samples)
    picture(run / "samples" / "a.png")
    picture(run / "samples" / "drawing.png", 600)
    path = write_report(run)
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)

    # Nothing is executed or fetched, and what users wrote stays text.
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [
        v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href") and v[0] not in "#d"
    ]
    assert f"OpenM6 run: {NASTY}" in page.text
    assert html.count("<script") == 0
    assert 'name="viewport"' in html

    # Every task and every text is there; pictures are inline; a lost one is said to be lost.
    for text in (
        "what is it?",
        "猫",
        "紅蘋果",
        "床前明月光，\n疑是地上霜。",
        "lalala",
        "reference: a dog",
        "no picture",
    ):
        assert text in page.text
    assert page.text.count("✓ right") == 2
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)

    # One chart of all tasks (for wide and narrow pages), one for the task, four of the run; no id twice.
    assert sum(tag == "svg" for tag, _ in page.tags) == 7
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert {"loss (nats)", "step", "GiB", "time (min)", "delink"} <= set(
        re.findall(r">([^<>]+)</text>", html)
    )
    assert len(ids) == len(set(ids)) >= 7


def test_figures_of_the_page(tmp_path, no_charts):
    text = Page(write_report(fake_run(tmp_path)).read_text(encoding="utf-8")).text
    words = re.sub(r"\s+", " ", text)
    assert "100 steps, 100,000 tokens in 3 min on" in words
    assert "Pseudo Giant for 40 steps (40 %), then delinked into the Real Giant." in words
    columns = "task start step 0 before delink step 40 after delink step 40 end step 100 best step 100"
    assert f"{columns} caption 3.500 2.500 2.400 1.000 1.000" in words
    assert "peak memory 1.00 GiB" in words
    assert "skipped steps 2 by step 60" in words
    assert "bad records 0 left out" in words
    assert "delink, at step 40" in words
    assert 'pip install "openm6[report]"' in words


STREAMED = {"budget_bytes": 3 * 2**30, "wait_share": 0.5, "read_gb_per_s": 1.9, "total_written_bytes": 2.5e12}


def test_a_streamed_run_tells_of_its_budget_and_its_disk(tmp_path):
    run = fake_run(tmp_path)
    streamed = [{**line(step), **STREAMED} for step in range(0, 101, 10)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in streamed))
    html = write_report(run).read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", Page(html).text)
    assert "peak memory 1.00 GiB resident, of a budget of 3.00 GiB" in words
    assert "written to disk 2,500 GB drive wear" in words
    assert {"% of a step", "GB a second"} <= set(re.findall(r">([^<>]+)</text>", html))


def test_a_run_under_way_without_delink_samples_or_config(tmp_path, no_charts):
    run = fake_run(tmp_path / "fresh", end=10)
    (run / "config.yaml").unlink()
    words = re.sub(r"\s+", " ", Page(write_report(run).read_text(encoding="utf-8")).text)
    assert "OpenM6 run: fresh" in words
    assert "Pseudo Giant, not delinked." in words
    assert "Samples" not in words and "Config" not in words


def test_many_and_large_pictures_stay_below_three_megabytes(tmp_path, no_charts):
    samples = []
    run = fake_run(tmp_path, samples=[])
    picture(run / "samples" / "big.png", 400)
    for i in range(module.CARDS + 5):
        (run / "samples" / f"{i}.png").write_bytes((run / "samples" / "big.png").read_bytes())
        samples.append(sample("caption", input_image=f"{i}.png", output=str(i)))
    (run / "samples" / "samples.json").write_text(json.dumps(samples))
    path = write_report(run)
    assert 1_000_000 < path.stat().st_size < 3_000_000
    text = Page(path.read_text(encoding="utf-8")).text
    assert "5 more in samples/samples.json." in text
    assert "no picture" in text


def test_what_cannot_be_reported_is_refused(tmp_path, no_charts):
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl to report on"):
        write_report(tmp_path)
    run = fake_run(tmp_path, samples={"task": "caption"})
    with pytest.raises(ValueError, match=r"samples\.json is not a JSON list of samples"):
        write_report(run)
