"""mstemba as a library: what it gives for one video, what a notebook shows, what is said of it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pickle
import re
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mstemba
from mstemba.pipeline.detect.scores_file import save_scores
from mstemba.pipeline.outputs.detection import MOST_SEGMENTS, MOST_VIDEOS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
ODD = ('<script>alert("1")</script>', "=1+1", "שלום", "two\nlines", "a & b", "caf\udce9")


def detection(id: str = "walk", classes: tuple[str, ...] = ("sit", "run")) -> mstemba.Detection:
    """Every class in every second row."""
    grid = mstemba.TimeGrid.even(0.0, 0.5, 20)
    rows = np.zeros((20, len(classes)), np.float32)
    rows[::2] = 0.9
    scores = mstemba.Scores(rows, grid, classes, f"/videos/{id}.mp4", 10.0, 30.0)
    return mstemba.Detection(scores, mstemba.find_segments(scores, 0.5, 0.3), None, {}, id=id)


def result(*ids: str, failed: dict[str, str] | None = None) -> mstemba.DetectResult:
    found = {id: detection(id) for id in ids}
    return mstemba.DetectResult(Path("out"), detections=found, failed=failed or {})


# What detect gives


def test_one_video_needs_no_id() -> None:
    one = result("walk")
    assert one.detection is one.detections["walk"]
    assert one.scores is one.detection.scores
    assert one.segments is one.detection.segments
    assert list(one) == [one.detection]


@pytest.mark.parametrize("name", ["detection", "scores", "segments"])
def test_several_videos_are_named_when_one_is_asked_for(name: str) -> None:
    several = result("a", "b")
    with pytest.raises(mstemba.UsageError, match=r"has 2 videos \('a', 'b'\), not one: take each"):
        getattr(several, name)
    assert [d.id for d in several] == ["a", "b"]
    many = result(*map(str, range(7)), failed={"x": "torn"})
    with pytest.raises(
        mstemba.UsageError, match=r"has 8 videos \('0', .*'4' and 3 more\), not one"
    ):
        getattr(many, name)
    with pytest.raises(mstemba.UsageError, match=r"has 0 videos \(none\), not one"):
        getattr(result(), name)


def test_a_video_that_failed_says_why_and_stays_out_of_the_iteration() -> None:
    none = result(failed={"v": "v.mp4: not a readable video"})
    with pytest.raises(mstemba.MstembaError, match=r"v: .*failed: v\.mp4: not a readable video"):
        _ = none.segments
    assert list(none) == []
    with pytest.raises(mstemba.UsageError, match=r"'a', 'v'"):
        _ = result("a", failed={"v": "torn"}).segments


def test_what_python_shows_is_short() -> None:
    one = result("walk")
    for thing in (one, one.detection, one.scores, one.scores.grid):
        assert len(repr(thing)) < 200
        assert "array(" not in repr(thing)
    assert repr(one) == "DetectResult('out', 1 video, 0 from saved scores, 0 failed)"
    assert repr(one.detection) == "Detection('walk', 20 segments of 2 of 2 classes, 10.0 s)"
    assert repr(one.scores) == "Scores('/videos/walk.mp4', 20 rows x 2 classes, 10.0 s)"
    assert repr(one.scores.grid) == "TimeGrid(20 rows from 0.00 s, 0.500 s apart)"


def test_a_detection_without_an_id_goes_by_its_file() -> None:
    assert dataclasses.replace(detection(), id="").name == "walk.mp4"


def test_results_can_be_sent_to_another_process() -> None:
    back = pickle.loads(pickle.dumps(result("walk", failed={"x": "torn"})))
    assert back.failed == {"x": "torn"}
    assert np.array_equal(
        back.detections["walk"].scores.probabilities, detection().scores.probabilities
    )


def test_kept_scores_are_read_by_name(tmp_path: Path) -> None:
    file = tmp_path / "walk.scores.npz"
    kept = mstemba.SavedScores(detection().scores, "key", "print", {"arch": "mstemba"})
    save_scores(file, kept)
    read = mstemba.read_scores(str(file))
    assert np.array_equal(read.scores.probabilities, kept.scores.probabilities)
    assert (read.key, read.provenance) == ("key", {"arch": "mstemba"})
    with pytest.raises(mstemba.MstembaError, match="no such file"):
        mstemba.read_scores(tmp_path / "none.scores.npz")


# Notebooks


class Seen(HTMLParser):
    """The tags and the text of a page, as a browser takes them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.sources: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


TAGS = {"div", "p", "img", "table", "thead", "tbody", "tr", "th", "td"}


def test_a_notebook_shows_the_timeline_and_the_first_segments() -> None:
    what = detection()
    seen = Seen(what._repr_html_())
    assert set(seen.tags) == TAGS
    (source,) = seen.sources
    assert source.startswith("data:image/png;base64,")
    assert seen.tags.count("tr") == 1 + min(MOST_SEGMENTS, len(what.segments))
    assert what._repr_png_().startswith(b"\x89PNG")
    assert "walk: 20 segments in 10.0 s" in seen.cells


def test_a_notebook_counts_what_it_does_not_show() -> None:
    many = detection(classes=("sit", "run", "eat"))
    assert len(many.segments) == 30
    assert f"... and {30 - MOST_SEGMENTS} more segments" in Seen(many._repr_html_()).cells
    videos = result(*(f"v{i}" for i in range(MOST_VIDEOS + 2)))
    assert "... and 2 more videos" in Seen(videos._repr_html_()).cells


def test_a_notebook_runs_no_name() -> None:
    what = detection("<img src=x onerror=alert(1)>", ODD)
    seen = Seen(what._repr_html_())
    assert set(seen.tags) == TAGS
    assert set(seen.sources) == {s for s in seen.sources if s.startswith("data:image/png")}
    for label in ODD:
        assert label.encode("utf-8", "backslashreplace").decode() in seen.cells
    what._repr_html_().encode("utf-8")
    failed = result("a", "b", failed={"<b>": "<script>"})
    seen = Seen(failed._repr_html_())
    assert {"<b>", "<script>", "2 videos", "1 failed", "sit, run"} <= set(seen.cells)
    assert set(seen.tags) <= TAGS


def test_a_notebook_shows_no_segments_and_no_videos() -> None:
    scores = dataclasses.replace(detection().scores, probabilities=np.zeros((20, 2), np.float32))
    nothing = mstemba.Detection(scores, [], None, {}, id="still")
    assert "still: 0 segments in 10.0 s" in Seen(nothing._repr_html_()).cells
    assert Seen(result()._repr_html_()).cells == ["0 videos"]
    assert result("walk")._repr_html_() == f"<div>{detection()._repr_html_()}</div>"


# The names


def test_every_public_name_is_there_and_no_other() -> None:
    for name in mstemba.__all__:
        assert getattr(mstemba, name).__name__ == name
    assert set(dir(mstemba)) == {*mstemba.__all__, "__version__"}
    with pytest.raises(AttributeError, match="'nonsense'"):
        mstemba.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse(inspect.getsource(mstemba))
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    imported = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    names = {(node.module, alias.name) for node in imported for alias in node.names}
    assert names == {(getattr(mstemba, n).__module__, n) for n in mstemba.__all__}
    # A type checker takes an import for public only if it repeats the name.
    assert all(alias.name == alias.asname for node in imported for alias in node.names)


FUNCTIONS = [n for n in mstemba.__all__ if inspect.isfunction(getattr(mstemba, n))]
CLASSES = [n for n in mstemba.__all__ if inspect.isclass(getattr(mstemba, n))]
# It gives an empty list where others would raise.
RAISES_NOTHING = {"find_segments"}


def section(name: str) -> str:
    """What the page says under a name's heading."""
    found = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/python.md has no heading {name}"
    return found[1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = getattr(mstemba, name)
    said = inspect.getdoc(function) or ""
    assert "Raises" in said or name in RAISES_NOTHING
    page = section(name)
    call = re.search(r"`(\w+\([^`]*\))`", page, re.DOTALL)
    assert call
    (parsed,) = [
        n for n in ast.walk(ast.parse(f"def {call[1]}: ...")) if isinstance(n, ast.arguments)
    ]
    given = [a.arg for a in (*parsed.posonlyargs, *parsed.args, *parsed.kwonlyargs)]
    assert given == list(inspect.signature(function).parameters)
    assert re.search(r"^Returns ", page, re.MULTILINE)
    assert re.search(r"^Raises ", page, re.MULTILINE)


def public(kind: type) -> dict[str, Any]:
    """The fields, properties and methods of a class by name, with what is said of each."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    said: dict[str, str] = {}
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = str(after.value.value)
            said[node.target.id] = text
        elif isinstance(node, ast.FunctionDef):
            said[node.name] = ast.get_docstring(node) or ""
    return {name: text for name, text in said.items() if not name.startswith("_")}


@pytest.mark.parametrize("name", CLASSES)
def test_the_page_names_every_field_and_method_of_a_class(name: str) -> None:
    kind = getattr(mstemba, name)
    assert inspect.getdoc(kind)
    page = section(name)
    fields = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    for member in {*public(kind), *fields}:
        assert re.search(rf"`[^`]*\b{member}\b[^`]*`", page), f"{name}.{member}"


@pytest.mark.parametrize(
    "name", [n for n in CLASSES if not n.endswith(("Options", "Error")) and n != "Report"]
)
def test_every_field_and_method_says_what_it_is(name: str) -> None:
    silent = [member for member, said in public(getattr(mstemba, name)).items() if not said]
    assert silent == []


SNIPPETS = [
    pytest.param(code, id=f"{file.name}-{number}")
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_in_the_docs_run(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def detect(*arguments: Any, **named: Any) -> mstemba.DetectResult:
        inspect.signature(real).bind(*arguments, **named)
        if "on_event" in named:
            named["on_event"](mstemba.Event("detect", "walk", 1.0, 2.0, video="walk", rate=1.0))
            named["on_event"](mstemba.Event("detect", "odd", warning=True))
        return result("walk")

    real = mstemba.detect
    monkeypatch.setattr(mstemba, "detect", detect, raising=False)
    exec(code, {"window": Window()})


class Window:
    """A program's window."""

    def set_bar(self, stage: str, share: float) -> None:
        assert 0 <= share <= 1

    def set_text(self, *parts: object) -> None:
        assert parts


def test_snippets_are_found() -> None:
    assert len(SNIPPETS) >= 3
