"""Annotations that are hostile or hold typing errors: one line, no memory, and a sound manifest."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.data_manifests.affixes import join_names
from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import load_manifest
from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.data_manifests.video_names import default_ids
from mstemba.errors import ManifestError, UsageError
from mstemba.limits import LONGEST_NAME, MOST_CLASSES
from mstemba.pipeline.init import init
from tests.command_line import Runner, complaint, environment
from tests.data_manifests.test_damaged import FORMS


def by_number(*numbers: object) -> str:
    """Annotations in JSON with an action for each of these class numbers."""
    actions = ", ".join(f"[{number}, {at}, {at + 1}]" for at, number in enumerate(numbers))
    return f'{{"v": {{"subset": "training", "actions": [{actions}]}}}}'


def read(path: Path, content: str | bytes) -> tuple[Any, AnnotationReport]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_annotations(path)


@pytest.mark.parametrize("number", ["2000000000", "3000000", f"{MOST_CLASSES}", "1" + 400 * "0"])
def test_no_classes_are_created_for_a_class_number_with_too_many_digits(
    number: str, tmp_path: Path
) -> None:
    manifest, report = read(tmp_path / "a.json", by_number(0, 1, 2, number))
    assert manifest.classes == ("class_0", "class_1", "class_2")
    assert len(manifest.videos["v"].actions) == 3
    assert report.skipped == {"class id outside 0 to 2": 1}
    assert report.examples["class id outside 0 to 2"].startswith(f"[{number[:8]}"[:9])


@pytest.mark.parametrize("number", ["-1", "-0.0", "1.0", "true", '"1"', "null"])
def test_a_class_number_that_is_not_one_is_skipped(number: str, tmp_path: Path) -> None:
    manifest, report = read(tmp_path / "a.json", by_number(0, 1, number))
    assert manifest.classes == ("class_0", "class_1")
    assert report.skipped.total() == 1


def test_annotations_whose_class_numbers_are_all_too_large_are_refused(
    mstemba: Runner, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(by_number(2000000000, 3000000))
    said = mstemba("init", "--annotations", "a.json", cwd=tmp_path, expect=2)
    assert "class id outside 0 to 9999: 2 skipped" in complaint(said)


@pytest.mark.parametrize(
    ("numbers", "doubted"),
    [
        ((*range(10), 9999), 1),
        ((*range(10), 30, 9999), 2),
        (range(30), 0),
        ((0, 1, 2, 9), 0),
        ((3, 40, 77, 120, 156), 0),  # a few classes of a large data set
        ((156,), 0),
    ],
)
def test_a_class_number_far_beyond_the_others_is_a_doubt(
    numbers: tuple[int, ...], doubted: int, tmp_path: Path
) -> None:
    _, report = read(tmp_path / "a.json", by_number(*numbers))
    doubts = {k: n for k, n in report.doubts.items() if "class number far beyond the others" in k}
    assert sum(doubts.values()) == doubted


def test_more_classes_than_any_data_set_has_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"v,1,2,label {n}\n" for n in range(MOST_CLASSES + 1))
    with pytest.raises(ManifestError, match="10,001 classes, expected at most 10,000"):
        read(tmp_path / "a.csv", "video,start,end,label\n" + rows)
    listed = json.dumps(
        {"classes": [f"c{n}" for n in range(MOST_CLASSES + 1)], "videos": {"v": {}}}
    )
    with pytest.raises(ManifestError, match=r"expected array of length <= 10000.* at \$\.classes"):
        read(tmp_path / "a.json", listed)


LONG = "x" * (LONGEST_NAME + 1)


@pytest.mark.parametrize(
    "odd", ["a\0b", LONG, "\ud800", ""], ids=["nul", "long", "surrogate", "none"]
)
@pytest.mark.parametrize("place", ["video", "class", "subset"])
def test_a_name_that_no_manifest_may_have_is_skipped(odd: str, place: str, tmp_path: Path) -> None:
    names = {"video": "odd", "class": "odd", "subset": "odd"} | {place: odd}
    fine = {"subset": "training", "annotations": [{"label": "sit", "segment": [1, 2]}]}
    entry = {
        "subset": names["subset"],
        "annotations": [{"label": names["class"], "segment": [1, 2]}],
    }
    text = json.dumps({"database": {"fine": fine, names["video"]: entry}})
    manifest, report = read(tmp_path / "a.json", text)
    assert manifest.videos["fine"].actions
    assert odd not in (*manifest.videos, *manifest.classes)
    assert odd not in [video.subset for video in manifest.videos.values()]
    assert report.skipped.total() == (0 if (place, odd) == ("subset", "") else 1)
    assert all(len(line) < 500 for line in report.lines())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "video,start,end,label\nv,1,2,sit\nv,1,2,{}\n"),
        ("a.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\nsit\n\n00:03.000 --> 00:04.000\n{}\n"),
        ("a.txt", "1\t2\tsit\n1\t2\t{}\n"),
        ("a.jsonl", '{{"start": 1, "end": 2, "label": "sit"}}\n'
                    '{{"start": 1, "end": 2, "label": "{}"}}\n'),
        ("a.eaf", FORMS["elan.eaf"].replace("{", "{{").replace("}", "}}").replace(
            "well I think so", "{}")),
    ],
)  # fmt: skip
def test_every_reader_skips_long_names_of_classes(name: str, content: str, tmp_path: Path) -> None:
    manifest, report = read(tmp_path / name, content.format(LONG))
    assert manifest.classes
    assert all(len(known) <= LONGEST_NAME for known in manifest.classes)
    assert report.skipped == {"class name longer than 1,000 characters": 1}


HUGE = "9" * 5000


@pytest.mark.parametrize(
    "time", ["NaN", "Infinity", "-Infinity", "1e308", "1e999", "1" + 400 * "0"]
)
def test_a_time_that_no_video_has_is_skipped(time: str, tmp_path: Path) -> None:
    for name, text in {
        "a.json": f'{{"v": {{"actions": [[0, 1, 2], [0, 1, {time}]]}}}}',
        "d.json": f'{{"v": {{"duration": {time}, "actions": [[0, 1, 2]]}}}}',
        "n.json": f'{{"database": {{"v": {{"annotations": [{{"label": "x", "segment": [1, 2]}},'
        f'{{"label": "x", "segment": [1, {time}]}}]}}}}}}',
        "r.json": f'[{{"video": "v", "start": 1, "end": 2, "label": "x"}},'
        f'{{"video": "v", "start": 1, "end": {time}, "label": "x"}}]',
        "a.csv": f"video,start,end,label\nv,1,2,x\nv,1,{time},x\n",
    }.items():
        manifest, report = read(tmp_path / name, text)
        assert [action[1:] for action in manifest.videos["v"].actions] == [(1.0, 2.0)], name
        assert manifest.videos["v"].duration is None
        assert report.skipped.total() == 1, name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f"video,start,end,label\nv,1,2,x\nv,1,{HUGE},x\n"),
        ("a.srt", f"1\n{HUGE}:00:01,000 --> 00:00:02,000\nsit\n\n"),
        ("a.vtt", f"WEBVTT\n\n00:01.000 --> 00:02.000\n&#{HUGE};\n"),
        ("a.eaf", FORMS["elan.eaf"].replace('TIME_VALUE="', f'TIME_VALUE="{HUGE}')),
        ("a.eaf", FORMS["elan.eaf"].replace("<MEDIA_DESCRIPTOR ",
                                            f'<MEDIA_DESCRIPTOR TIME_ORIGIN="{HUGE}" ')),
        ("a.txt", FORMS["elan.txt"].replace("offset: 10", f"offset: {HUGE}")),
        ("a.json", f'{{"v": {{"actions": [[0, 1, {HUGE}]]}}}}'),
    ],
)  # fmt: skip
def test_numbers_of_thousands_of_digits_are_one_line(
    name: str, content: str, tmp_path: Path
) -> None:
    try:
        said = "; ".join(read(tmp_path / name, content)[1].lines())
    except ManifestError as error:
        said = str(error)
    assert said
    assert len(said) < 2000
    assert "\n" not in said


def test_deep_lists_are_one_line(tmp_path: Path) -> None:
    deep = "[" * 900 + "]" * 900
    for text in (
        f'{{"v": {{"actions": [{deep}]}}}}',
        deep,
        f'{{"classes": {deep}, "videos": {{}}}}',
    ):
        with pytest.raises(ManifestError, match=r"nested 90. levels deep, expected at most 64"):
            read(tmp_path / "a.json", text)
    (tmp_path / "a.jsonl").write_text(f'{deep}\n{{"start": 1, "end": 2, "label": "x"}}\n')
    assert read_annotations(tmp_path / "a.jsonl")[1].skipped == {"malformed record": 1}


words = st.text(st.characters(exclude_categories=()), max_size=5) | st.sampled_from(
    [
        "v",
        "file:///a%00.mp4",
        "C:\\a.mp4",
        "/",
        ".mp4",
        "\U0001d160" * 400,
        LONG,
        "train",
        "\u0130" * 900,
    ]
)
values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.integers(), st.floats(), words,
    st.lists(st.integers(0, 3), max_size=3),
)  # fmt: skip
own = st.fixed_dictionaries(
    {"actions": st.lists(st.tuples(st.integers(-1, 12) | values, values, values) | values)},
    optional={"subset": values, "duration": values, "annotated_until": values},
)
labelled = st.fixed_dictionaries(
    {"annotations": st.lists(st.fixed_dictionaries({"label": values, "segment": st.just([1, 2])}))},
    optional={"subset": values},
)
contents = st.one_of(
    st.dictionaries(words, own, min_size=1),
    st.fixed_dictionaries({"database": st.dictionaries(words, labelled, min_size=1)}),
    st.fixed_dictionaries({"classes": st.lists(words), "videos": st.dictionaries(words, own)}),
    st.lists(
        st.fixed_dictionaries({"video": words, "start": values, "end": values, "label": values})
    ),
)


@given(content=contents)
def test_init_refuses_annotations_or_writes_a_manifest_that_loads(
    content: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("w")
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    try:
        init(annotations=path, root=folder)
    except UsageError:
        assert not (folder / "manifest.json").exists()
    else:
        load_manifest(folder / "manifest.json")


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file in which bytes are changed, removed, repeated or replaced by something hostile."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        end = min(len(content), at + chance.choice([1, 1, 4, 40]))
        new = chance.choice([
            bytes([chance.randrange(256)]), b"", content[at:end] * 3, b"\0", b"\xed\xa0\x80", b'"',
            b"9" * 5000, b"[" * 900,
            b"1e999", b"NaN", b"-1", b"\n\n", b",", b";", b"\t", b"<",
            b"&", "\U0001d160".encode() * 400, b"\xff\xfe", b"x" * 2000, b"{}",
            b"00:00:01,000 --> ",
        ])  # fmt: skip
        content = content[:at] + new + content[end:]
    return content


def check_mutations(name: str, tmp_path: Path, count: int) -> None:
    path = tmp_path / name
    for seed in range(count):
        chance = random.Random(f"{name} {seed}")
        content = FORMS[name].encode(chance.choice(["utf-8"] * 4 + ["utf-16", "utf-32"]))
        path.write_bytes(mutated(content, chance))
        said = ""
        try:
            made = init(annotations=path, root=tmp_path / "w")
        except UsageError as error:
            said = str(error)
        else:
            load_manifest(made.workspace.manifest)
        assert "\n" not in said
        assert len(said) < 3000


@pytest.mark.parametrize("name", FORMS)
def test_damaged_annotations_are_refused_or_read(name: str, tmp_path: Path) -> None:
    check_mutations(name, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_more_damaged_annotations_are_refused_or_read(name: str, tmp_path: Path) -> None:
    check_mutations(name, tmp_path, 200)


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.eaf", "a.srt", "a.jsonl"])
def test_a_pipe_is_not_waited_for(name: str, mstemba: Runner, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    said = mstemba("init", "--annotations", name, cwd=tmp_path, expect=2)
    assert complaint(said) == f"mstemba: {name}: found a named pipe, expected a file"
    (tmp_path / "fine.csv").write_text("video,start,end,label\na,1,2,sit\na,2,3,sit\n")
    given = ("init", "--annotations", "fine.csv")
    said = mstemba(*given, "--classes", name, cwd=tmp_path, expect=2)
    assert complaint(said) == f"mstemba: --classes {name}: found a named pipe, expected a file"
    if not name.startswith("a.json"):  # not read in folders
        said = mstemba("init", "--annotations", ".", cwd=tmp_path)
        assert f"pipe, device or socket: 1 ignored, for example {name}: a named pipe" in said.stderr


def test_special_files_among_videos_are_named_and_skipped(mstemba: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").touch()
    os.mkfifo(folder / "pipe.mp4")
    os.mkfifo(folder / "pipe.m3u8")
    said = mstemba("init", "videos", cwd=tmp_path)
    assert list(load_manifest(tmp_path / "manifest.json").videos) == ["a"]
    assert "pipe.mp4: skipped a named pipe" in said.stdout + said.stderr
    assert "pipe.m3u8: skipped a named pipe" in said.stdout + said.stderr
    for video in ("videos/pipe.mp4", "/dev/zero", "x" * 5000):
        assert complaint(mstemba("init", video, cwd=tmp_path, expect=2))


def test_names_that_are_alike_are_joined_in_linear_time() -> None:
    begin = time.process_time()
    long = [("a_1" * 330)[:990] + f"{n:06d}" for n in range(3000)]
    assert not join_names(long, {f"{n:06d}": None for n in range(3000)}).ids
    files = {f"d{n}/x": Path(f"/d{n}/x.mp4") for n in range(5000)}
    assert len(join_names([f"q{n}/x.mp4" for n in range(5000)], files).ambiguous) == 5000
    assert len(set(default_ids([f"/q{n}/x.mp4" for n in range(20_000)], ()).values())) == 20_000
    assert time.process_time() - begin < 20


def test_more_lines_than_classes_may_be_are_refused(mstemba: Runner, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video,start,end,label\na,1,2,c1\n")
    for text, message in (
        ("".join(f"c{n}\n" for n in range(MOST_CLASSES + 1)), "10,001 lines; expected one class"),
        (f"c1\n{LONG}\n", "expected str of length <= 1000"),
        ("c1\nc\0\n", "that a file name can have"),
    ):
        (tmp_path / "c.txt").write_text(text)
        said = mstemba(
            "init", "--annotations", "a.csv", "--classes", "c.txt", cwd=tmp_path, expect=2
        )
        assert complaint(said).startswith("mstemba: --classes c.txt")
        assert message in complaint(said)


@pytest.mark.parametrize("lines", [[LONG], [f"l{n}" for n in range(MOST_CLASSES + 1)]])
def test_labels_for_detection_are_bounded(
    lines: list[str], mstemba: Runner, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "l.txt").write_text("\n".join(lines))
    said = mstemba("detect", "a.mp4", "--labels", "l.txt", cwd=tmp_path, expect=2)
    message = complaint(said)
    assert "longer than 1,000 characters" in message or "10,001 labels, expected" in message
    assert len(message) < 500


MEASURED = """
import resource, sys
from mstemba.errors import UsageError
from mstemba.pipeline.init import init
import mstemba.console
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    init(annotations=sys.argv[1], root="w")
except UsageError as error:
    assert "\\n" not in str(error) and len(str(error)) < 3000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
HEAD = b"video,start,end,label\n"
CUE = b"WEBVTT\n\n00:01.000 --> 00:02.000\n"
LARGE = {
    "commas.csv": (HEAD, b","),
    "rows.csv": (HEAD, b"a,1,2,b\n"),
    "some.csv": (HEAD, b"a.mp4,1.25,2.5," + b"b" * 90 + b"\n"),
    "lines.csv": (HEAD, b"\n"),
    "line.csv": (b"", b"a"),
    "open.csv": (HEAD + b'a,1,2,"', b"abc "),
    "digits.csv": (HEAD, b"a," + b"1" * 100_000 + b"x,2,b\n"),
    "wide.csv": (HEAD, "a,1,2,\U0001f3ac".encode() + b"b" * 200 + b"\n"),
    "tags.eaf": (b"<a>", b"<a/>"),
    "nested.eaf": (b"", b"<a>"),
    "attributes.eaf": (b"<a>", b"<a b=''/>"),
    "text.eaf": (b"<a>", b"x\n"),
    "lines.srt": (b"", b"\n"),
    "marks.vtt": (CUE, b"<"),
    "references.vtt": (CUE + b"&#", b"9"),
    "spaces.srt": (b"1\n", b" "),
    "empty.jsonl": (b"", b"{}\n"),
    "numbers.jsonl": (b"", b"1\n"),
    "lists.json": (b"", b"["),
    "objects.json": (b'{"v": {"actions": [0', b",{}"),
    "classes.json": (b'{"videos": {"v": {}}, "classes": ["0"', b',"abcd"'),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_no_file_takes_all_memory_or_minutes(name: str, tmp_path: Path) -> None:
    head, unit = LARGE[name]
    size = 50_000_000
    with (tmp_path / name).open("wb") as file:
        file.write(head)
        for _ in range(50):
            file.write(unit * (size // 50 // len(unit)))
    begin = time.monotonic()
    # Started by a small process: the peak of its parent would count.
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, name],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 4 * (tmp_path / name).stat().st_size + 500_000_000
    assert time.monotonic() - begin < 60
