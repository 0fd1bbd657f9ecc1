"""Predictions from files: every form, and what is refused; no pickle is ever executed."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import pickle
import tracemalloc
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mstemba.data_manifests.manifest import Video
from mstemba.errors import UsageError
from mstemba.pipeline.evaluate.pickles import read_pickle
from mstemba.pipeline.evaluate.predictions import read_predictions

CLASSES = ("walk", "sit", "eat")
ROWS = np.random.default_rng(0).random((5, 3)).astype(np.float32)
NUMBERS = ("f2", "f4", "f8", ">f4", "i1", "u2", "<i4", "i8", "?")


def dump(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@given(
    array=arrays.arrays(st.sampled_from(NUMBERS), arrays.array_shapes(min_dims=0, max_dims=3)),
    protocol=st.integers(0, 5),
    turned=st.booleans(),
)
def test_pickled_arrays_are_what_they_were(
    array: np.ndarray, protocol: int, turned: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    array = array.T if turned else array  # in Fortran's order
    content = collections.OrderedDict(v=array, more=[(array, array.flat[0], 2.5, None, "x", b"y")])
    path = dump(tmp_path_factory.mktemp("p") / "p.pkl", content, protocol)
    found = read_pickle(path)
    inner, scalar, *rest = found["more"][0]
    for read in (found["v"], inner):
        assert read.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(read, array)
    np.testing.assert_equal(scalar, array.flat[0])
    assert rest == [2.5, None, "x", b"y"]


def test_the_names_before_numpy_2_are_known(tmp_path: Path) -> None:
    old = pickle.dumps({"v": ROWS, "n": ROWS[0, 0]}, 2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in old
    (tmp_path / "old.pkl").write_bytes(old)
    found = read_pickle(tmp_path / "old.pkl")
    np.testing.assert_array_equal(found["v"], ROWS)
    assert found["n"] == ROWS[0, 0]


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    content = (
        b"\x80\x02}U\x01vcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x01K\x03\x86cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x0c" + ROWS[0].tobytes() + b"tbs."
    )
    (tmp_path / "old.pkl").write_bytes(content)
    np.testing.assert_array_equal(read_pickle(tmp_path / "old.pkl")["v"], ROWS[:1])


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (lambda path: {"v": Runs(os.mkdir, str(path))}, "mkdir"),
        (lambda path: {"v": Runs(eval, f"open({str(path)!r}, 'w')")}, "eval"),
        (lambda path: {"v": Runs(np.savetxt, str(path), ROWS)}, "savetxt"),
        (lambda path: {"v": Runs(getattr, ROWS, "tofile")}, "getattr"),
        (lambda path: {"v": {1, 2}}, None),
        (lambda path: {"v": np.dtype}, None),
        (lambda path: {"v": np.array([{}, path])}, None),
        (lambda path: {"v": np.zeros(2, [("x", "O")])}, None),
        (lambda path: {"v": np.zeros(2, "M8[s]")}, None),
        (lambda path: {"v": np.ma.masked_array([1.0])}, "_mareconstruct"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_is_no_plain_array_is_refused_and_never_run(
    content: Any, named: str | None, protocol: int, tmp_path: Path
) -> None:
    target = tmp_path / "was run"
    path = dump(tmp_path / "evil.pkl", content(target), protocol)
    with pytest.raises(UsageError, match=r"evil\.pkl") as refused:
        read_predictions(path, CLASSES)
    if named:
        assert named in str(refused.value)
        assert "not executed" in str(refused.value)
    assert not target.exists()


def test_a_pickle_cannot_change_what_reads_it(tmp_path: Path) -> None:
    """BUILD sets attributes of what is below it on the stack, here of the class itself."""
    for state in (b"}U\x05valueK\x01s", b"N}U\x05valueK\x01s\x86"):
        (tmp_path / "p.pkl").write_bytes(b"\x80\x02cnumpy\nndarray\n" + state + b"b.")
        with pytest.raises(UsageError, match="not readable as a pickle"):
            read_pickle(tmp_path / "p.pkl")
    np.testing.assert_array_equal(read_pickle(dump(tmp_path / "p.pkl", ROWS)), ROWS)


@given(cut=st.integers(0, 400), flip=st.integers(0, 400), value=st.integers(0, 255))
def test_a_damaged_pickle_is_a_users_error(
    cut: int, flip: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(pickle.dumps({"v": ROWS.T}, 4))
    content[flip % len(content)] = value
    path = tmp_path_factory.mktemp("p") / "p.pkl"
    path.write_bytes(content[: max(cut, 2)])
    with contextlib.suppress(UsageError):  # and nothing but it
        found = read_predictions(path, CLASSES).scores
        assert found is not None
        assert [table.shape for table in found.values()] == [(5, 3)]


def test_what_a_users_program_may_well_have_pickled_is_read(tmp_path: Path) -> None:
    for protocol in range(6):
        for factory in (list, dict, None):
            tables = collections.defaultdict(factory, {np.str_("vé"): ROWS, np.int64(7): ROWS[:2]})
            path = dump(tmp_path / "p.pkl", {"of": tables, np.bytes_(b"b"): np.str_("x")}, protocol)
            found = read_pickle(path)
            assert list(found) == ["of", b"b"]
            assert found[b"b"] == "x"
            assert list(found["of"]) == ["vé", 7]
            with pytest.raises(KeyError):
                found["of"]["other"]
            np.testing.assert_array_equal(found["of"]["vé"], ROWS)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\x80\x02cbuiltins\nlist\n)R.", "not callable"),
        (b"\x80\x02cbuiltins\nlist\n}X\x01\x00\x00\x00aK\x01sb.", "takes no state"),
        (b"\x80\x02ccollections\ndefaultdict\ncbuiltins\nbytearray\n\x85R.", "bytearray"),
        (pickle.dumps({(1, 2): ROWS}), "key of type tuple"),
        # numpy.ndarray((1 << 40,)) would reserve memory, and its state could be anything
        (b"\x80\x02cnumpy\nndarray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85\x85R.", "not callable"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        # attributes of what a name resolves to: a dict as state, and a pair for slots
        (b"\x80\x02cnumpy.core.multiarray\nscalar\n}X\x01\x00\x00\x00aK\x01sb.", "takes no state"),
        (b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00aK\x01s\x86b.", "takes no state"),
        (b"\x80\x02cnumpy\ndtype\n.", "expected a value"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R.", "expected a value"),
    ],
)
def test_names_are_no_more_than_names(content: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "p.pkl").write_bytes(content)
    with pytest.raises(UsageError, match=named):
        read_pickle(tmp_path / "p.pkl")


def shared(value: Any, times: int, levels: int) -> Any:
    """Lists of one list, of one list...: few names, times ** levels values."""
    for _ in range(levels):
        value = [value] * times
    return value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        # numpy's scalar(dtype, 3 << 30), where the bytes of the number should be
        (
            b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00u1"
            b"K\x00K\x01\x87R\x8a\x05\x00\x00\x00\xc0\x00\x86R.",
            "an array of a int",
        ),
        (pickle.dumps({"v": shared(1.0, 10, 12)}), "too often"),
        (pickle.dumps({"v": shared(np.zeros(1000), 100, 4)}), "too often"),
        (pickle.dumps({"v": shared({}, 2, 60)}), "too often"),
        (pickle.dumps({"v": shared(np.zeros((0, 3)), 100, 5)}), "too often"),
    ],
)
def test_a_small_pickle_stays_small(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.pkl").write_bytes(content)
    assert len(content) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=said):
            read_pickle(tmp_path / "p.pkl")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((5, 3), True), ((1 << 40,), False), ((-1,), False), ((5, 2), False), ((1 << 40, 0), False)],
)
def test_an_array_has_the_bytes_of_its_shape(
    shape: tuple[int, ...], fits: bool, tmp_path: Path
) -> None:
    content = pickle.dumps(ROWS, 2)
    own = b"K\x05K\x03\x86"  # its shape, as a pickle has it
    assert content.count(own) == 1
    other = pickle.dumps(shape, 2)[2:].split(b"q")[0]
    (tmp_path / "p.pkl").write_bytes(content.replace(own, other))
    if fits:
        np.testing.assert_array_equal(read_pickle(tmp_path / "p.pkl"), ROWS)
    else:
        with pytest.raises(UsageError, match="not readable as a pickle: "):
            read_pickle(tmp_path / "p.pkl")


def test_an_array_whose_axes_were_moved_is_read_in_protocol_5(tmp_path: Path) -> None:
    moved = np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2)
    found = read_pickle(dump(tmp_path / "p.pkl", moved, 5))
    np.testing.assert_array_equal(found, moved)


def test_rows_may_be_the_same_list(tmp_path: Path) -> None:
    path = dump(tmp_path / "p.pkl", {"v": shared([0.1, 0.2, 0.3], 2000, 1)})
    found = read_predictions(path, CLASSES).scores
    assert found is not None
    np.testing.assert_array_equal(found["v"], np.float32([[0.1, 0.2, 0.3]] * 2000))


def forms(folder: Path) -> list[Path]:
    """The same scores of two videos in every dense form."""
    one, other = ROWS, ROWS[:4]
    np.savez(folder / "p.npz", v0=one, v1=other)
    np.savez(folder / "turned.npz", v0=one.T, v1=other.T)
    (folder / "p.json").write_text(json.dumps({"v0": one.tolist(), "v1": other.tolist()}))
    return [
        folder / "p.npz",
        folder / "turned.npz",
        folder / "p.json",
        dump(folder / "rows.pkl", {"v0": one, "v1": other[None]}),
        dump(folder / "fields.pkl", {"v0": one.T, "v1": other.T}, 2),
        dump(folder / "with_fps", {b"v0": (one.T, np.float64(1.5)), "v1": (other.T, 0)}, 5),
    ]


def test_every_dense_form_gives_the_same_scores(tmp_path: Path) -> None:
    for path in forms(tmp_path):
        found = read_predictions(path, CLASSES)
        assert found.scores is not None
        assert (found.warnings, found.ids) == ([], ["v0", "v1"]), path
        np.testing.assert_allclose(found.scores["v0"], ROWS, rtol=1e-6)
        np.testing.assert_allclose(found.scores["v1"], ROWS[:4], rtol=1e-6)
        assert {scores.dtype for scores in found.scores.values()} == {np.dtype(np.float32)}


def test_square_scores_have_classes_first_in_a_pickle_alone(tmp_path: Path) -> None:
    square = ROWS[:3]
    np.savez(tmp_path / "p.npz", v=square)
    fields = read_predictions(dump(tmp_path / "p.pkl", {"v": square}), CLASSES).scores
    ours = read_predictions(tmp_path / "p.npz", CLASSES).scores
    assert fields is not None
    assert ours is not None
    np.testing.assert_array_equal(fields["v"], square.T)
    np.testing.assert_array_equal(ours["v"], square)


def test_one_row_may_have_lost_its_axis(tmp_path: Path) -> None:
    found = read_predictions(dump(tmp_path / "p.pkl", {"a": ROWS[0], "b": ROWS}), CLASSES).scores
    assert found is not None
    assert found["a"].shape == (1, 3)


def test_logits_become_probabilities_and_it_is_said(tmp_path: Path) -> None:
    logits = np.array([[-1000.0, 0.0, 3.0], [2.0, 1000.0, 0.5]])
    np.savez(tmp_path / "p.npz", v=logits, w=ROWS)
    found = read_predictions(tmp_path / "p.npz", CLASSES)
    assert found.scores is not None
    expected = [[0, 0.5, 1 / (1 + np.exp(-3))], [1 / (1 + np.exp(-2)), 1, 1 / (1 + np.exp(-0.5))]]
    np.testing.assert_allclose(found.scores["v"], expected, atol=1e-6)
    assert "logits" in found.warnings[0]
    assert "become the same probability" in found.warnings[1]
    np.savez(tmp_path / "p.npz", v=np.clip(logits, -1000, 16), w=ROWS)
    assert len(read_predictions(tmp_path / "p.npz", CLASSES).warnings) == 1


def test_logits_keep_their_order_in_any_type(tmp_path: Path) -> None:
    logits = np.array([[-40.0, -30.0, -20.0], [-12.0, 8.0, 12.0]], np.float16)
    np.savez(tmp_path / "p.npz", v=logits)
    found = read_predictions(tmp_path / "p.npz", CLASSES)
    assert found.scores is not None
    assert (np.diff(found.scores["v"].ravel()) > 0).all()


def test_a_pickle_with_data_after_its_end_is_refused(tmp_path: Path) -> None:
    whole = pickle.dumps({"v": ROWS})
    for rest in (whole, b"rest"):
        (tmp_path / "p.pkl").write_bytes(whole + rest)
        with pytest.raises(UsageError, match=r"p\.pkl: .*data after its end"):
            read_predictions(tmp_path / "p.pkl", CLASSES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": np.zeros((7, 4)), "b": np.zeros((9, 4))}, ("4 classes", "manifest has 3")),
        ({"a": np.zeros((4, 7)), "b": np.zeros((4, 9))}, ("4 classes", "manifest has 3")),
        ({"a": np.zeros((7, 4))}, ("'a'", "(7, 4)", "(T, 3)")),
        ({"a": np.zeros((7, 3)), "b": np.zeros((5, 4))}, ("'b'", "(5, 4)", "(T, 3)")),
        ({"a": np.zeros((2, 7, 3))}, ("'a'", "(2, 7, 3)", "(T, C)")),
        ({"a": np.zeros((0, 3))}, ("'a'", "(0, 3)")),
        ({"a": np.full((2, 3), np.nan), "b": ROWS}, ("NaN", "1 of 2", "'a'")),
        ({"a": "text"}, ("'a'", "(T, C)")),
        ({1: ROWS, "1": ROWS}, ("two entries of one video",)),
        ({}, ("an empty dict", "scores by video id")),
        ([ROWS], ("a list", "scores by video id")),
        (ROWS, ("a ndarray", "scores by video id")),
    ],
)
def test_scores_that_do_not_fit_are_refused(
    content: Any, words: tuple[str, ...], tmp_path: Path
) -> None:
    path = dump(tmp_path / "p.pkl", content)
    with pytest.raises(UsageError) as refused:
        read_predictions(path, CLASSES)
    assert all(word in str(refused.value) for word in ("p.pkl", *words)), refused.value


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.json", b"[1, 2]", ("a JSON list", "a pickle, .npz or JSON")),
        ("p.json", b"\xff\xfe", ("not readable as JSON", "a pickle, .npz or JSON")),
        ("p.json", b'{"v": [[1, 2, 3], [1, 2]]}', ("'v'", "(T, C)")),
        ("p.json", b'{"v": [[1, 2, 3]], "w": [], "v": [[3, 2, 1]]}', ("'v' appears twice at $",)),
        ("p.json", b'{"results": {"v": [], "v": []}}', ("'v' appears twice at $.results",)),
        ("p.json", b'{"video": "v.mp4", "segments": ["sit"]}', ("found str at $.segments[0]",)),
        ("p.json", b'{"video": "v.mp4", "segments": [[1, 2]]}', ("found array at $.segments[0]",)),
        ("p.json", b'{"segments": []}', ("missing required field video",)),
        ("p.json", b'{"video": "", "segments": []}', ("found '' at $.video", "path of a video")),
        ("p.npz", b"PK\x03\x04 damaged", ("not readable as a zip archive",)),
        ("p.npy", b"\x93NUMPY", ("not readable as JSON",)),
        ("p.json", b"", ("not readable as JSON",)),
        ("p.json", b"[" * 100_000, ("nested 100000 levels", "a pickle, .npz or JSON")),
        ("p.json", b'{"v": [[1' + b"0" * 5000 + b", 2, 3]]}", ("not readable as JSON",)),
        ("p.json", b'{"v": [[1' + b"0" * 400 + b", 2, 3]]}", ("'v'", "(T, C)")),
        ("p.json", rb'{"a\u0000": [[1, 2, 3]]}', (r"found 'a\x00' at $",)),
        ("p.json", rb'{"results": {"a\ud800": []}}', (r"found 'a\ud800' at $.results",)),
        ("p.json", rb'{"video": "a\u0000", "segments": []}', (r"found 'a\x00' at $.video",)),
    ],
)
def test_a_file_of_no_known_form_is_refused(
    name: str, content: bytes, words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as refused:
        read_predictions(tmp_path / name, CLASSES)
    assert all(word in str(refused.value) for word in (name, *words)), refused.value


def test_objects_in_an_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", v=np.array([{}], object))
    with pytest.raises(UsageError, match=r"p\.npz: not readable"):
        read_predictions(tmp_path / "p.npz", CLASSES)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_predictions(tmp_path / "p.pkl", CLASSES)
    with pytest.raises(UsageError, match="no JSON of"):
        read_predictions(tmp_path, CLASSES)


def activitynet(path: Path, *found: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"version": "1", "external_data": {}, "results": {"v": found}}))
    return path


def test_activitynets_results_are_read(tmp_path: Path) -> None:
    path = activitynet(
        tmp_path / "p.json",
        {"label": "eat", "segment": [1, 2.5], "score": 0.5},
        {"label": "swim", "segment": [1, 2.5], "score": 0.5},
        {"label": "sit", "segment": [3, 3], "score": 1},
    )
    found = read_predictions(path, CLASSES)
    assert found.scores is None
    assert found.segments is not None
    assert [(s.start, s.end, s.class_id, s.score) for s in found.segments["v"]] == [
        (1.0, 2.5, 2, 0.5)
    ]
    assert not found.in_seconds
    said = " ".join(found.warnings)
    assert "ignored 1 segment of 1 class that" in said
    assert "'swim'" in said
    assert "ignored 1 segment without length" in said


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"label": "swim", "segment": [1, 2], "score": 1}, ("'swim'", "'walk'")),
        (
            {"label": "sit", "segment": [1], "score": 1},
            ("length 2, found 1 at $.results.v[0].segment",),
        ),
        ({"label": "sit", "segment": [1, 1e300], "score": 1}, ("found 1e+300 at $.results.v[0]",)),
        ({"label": "sit", "segment": [1, 2]}, ("missing required field score at $.results.v[0]",)),
        (
            {"label": "sit", "segment": [1, 2], "score": float("nan")},
            ("found nan at $.results.v[0].score",),
        ),
    ],
)
def test_segments_that_cannot_be_used_are_refused(
    item: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as refused:
        read_predictions(activitynet(tmp_path / "p.json", item), CLASSES)
    assert all(word in str(refused.value) for word in ("p.json", *words)), refused.value


def test_what_detect_writes_is_read_alone_and_as_a_folder(tmp_path: Path) -> None:
    for name, start in (("a", 1.0), ("b", 2.0)):
        segment = {"label": "sit", "class_id": 1, "start": start, "end": 9.0, "score": 0.7}
        content = {"video": f"films/{name}.mp4", "classes": CLASSES, "segments": [segment]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / ".writing-4711-ab.json").write_text("{")  # a killed process leaves it
    alone = read_predictions(tmp_path / "b.json", CLASSES)
    both = read_predictions(tmp_path, CLASSES)
    assert alone.in_seconds
    assert both.in_seconds
    assert alone.segments is not None
    assert both.segments is not None
    assert {id: [s.start for s in found] for id, found in both.segments.items()} == {
        "a": [1.0],
        "b": [2.0],
    }
    assert alone.segments["b"] == both.segments["b"]
    assert "1 JSON files are not of `mstemba detect`" in both.warnings[0]


def detected(folder: Path, **videos: str) -> Path:
    """What detect writes for videos with one segment each, by the name of the JSON file."""
    folder.mkdir()
    for name, video in videos.items():
        segment = {"label": "sit", "start": 1.0, "end": 2.0, "score": 0.7}
        (folder / f"{name}.json").write_text(json.dumps({"video": video, "segments": [segment]}))
    return folder


def known(**paths: Path | None) -> list[Video]:
    return [Video(id.replace("__", "/"), path, "testing", 9.0) for id, path in paths.items()]


def test_videos_of_detect_have_the_manifests_ids(tmp_path: Path) -> None:
    folder = detected(
        tmp_path / "out",
        a=str(tmp_path / "here" / ".." / "x7.mp4"),
        b="films/monday/cam1.mp4",
        c="films/tuesday/cam1.mp4",
        d="films/cam2.mp4",
        e="films/other.mp4",
    )
    (tmp_path / "here").mkdir()
    ids = known(kitchen=tmp_path / "x7.mp4", monday__cam1=None, tuesday__cam1=None)
    ids += [Video("cam2.mp4", None, "testing", 9.0), *known(cam1=None)]
    found = read_predictions(folder, CLASSES, ids).segments
    assert found is not None
    assert list(found) == ["kitchen", "monday/cam1", "tuesday/cam1", "cam2.mp4", "other"]
    assert read_predictions(folder / "b.json", CLASSES, ids).ids == ["monday/cam1"]


def test_two_files_of_one_video_are_refused(tmp_path: Path) -> None:
    folder = detected(tmp_path / "out", v5="a/v5.json", other="b/v5.json")
    with pytest.raises(UsageError) as refused:
        read_predictions(folder, CLASSES, known(v5=None))
    assert all(word in str(refused.value) for word in ("v5.json", "other.json", "'v5'"))
    two = read_predictions(folder, CLASSES, known(a__v5=None, b__v5=None)).segments
    assert two is not None
    assert set(two) == {"a/v5", "b/v5"}


# Names of videos


def named(folder: Path, form: str, *names: str) -> Path:
    """Write predictions of videos with these names; row 0 of the n-th one is n / 10."""
    tables = {name: np.full((4, 3), n / 10, np.float32) for n, name in enumerate(names)}
    found = {
        name: [{"label": "sit", "segment": [1.0, 2.0], "score": n / 10}]
        for n, name in enumerate(names)
    }
    if form == "npz":
        np.savez(folder / "p.npz", **tables)
        return folder / "p.npz"
    if form == "pickle":
        return dump(folder / "p.pkl", {name: table.T for name, table in tables.items()})
    if form == "detect":
        (folder / "out").mkdir()
        for n, name in enumerate(names):
            segment = {"label": "sit", "start": 1.0, "end": 2.0, "score": n / 10}
            content = {"video": name, "segments": [segment]}
            (folder / "out" / f"{n}.json").write_text(json.dumps(content))
        return folder / "out"
    dense = {name: table.tolist() for name, table in tables.items()}
    content = {"results": found} if form == "results" else dense
    (folder / "p.json").write_text(json.dumps(content))
    return folder / "p.json"


def numbers_by_id(path: Path, videos: list[Video]) -> dict[str, int]:
    found = read_predictions(path, CLASSES, videos)
    if found.scores is not None:
        return {id: round(10 * float(scores[0, 0])) for id, scores in found.scores.items()}
    return {id: round(10 * s.score) for id, (s,) in (found.segments or {}).items()}


NAMES = [
    (("clips/monday.mp4", "clips/tuesday.mp4"), ("monday", "tuesday")),
    (("https://example.org/v/monday.mp4?t=1", "file:///C:/tuesday.mov"), ("monday", "tuesday")),
    (("MONDAY", "Tuesday.MP4"), ("monday", "tuesday")),
    ((unicodedata.normalize("NFD", "Küche"), "Tür"), ("Küche", "Tür")),
    (("v_QOlSCBRmfWY", "v_-hGHCYKz_Z8"), ("QOlSCBRmfWY", "-hGHCYKz_Z8")),
    (("QOlSCBRmfWY", "-hGHCYKz_Z8"), ("v_QOlSCBRmfWY", "v_-hGHCYKz_Z8")),
    (("v_a b.mp4", "v_c d.mp4"), ("a b", "c d")),
    (("monday_clip", "tuesday_clip"), ("monday", "tuesday")),
]


@pytest.mark.parametrize("form", ["npz", "pickle", "dense", "results", "detect"])
@pytest.mark.parametrize(("names", "ids"), NAMES)
def test_videos_are_found_by_other_names_in_every_form(
    tmp_path: Path, form: str, names: tuple[str, ...], ids: tuple[str, ...]
) -> None:
    path = named(tmp_path, form, *names)
    videos = [Video(id, None, "testing", 9.0) for id in (*ids, "unrelated", "x/y")]
    assert numbers_by_id(path, videos) == {id: n for n, id in enumerate(ids)}


def test_the_paths_of_the_manifest_decide_between_folders(tmp_path: Path) -> None:
    path = named(tmp_path, "results", "day2/cam.mp4", "day1/cam.mp4")
    videos = known(one=Path("/films/day1/cam.mp4"), two=Path("/films/day2/cam.mp4"))
    assert numbers_by_id(path, videos) == {"two": 0, "one": 1}


@pytest.mark.parametrize("form", ["pickle", "results", "detect"])
def test_other_names_are_told(tmp_path: Path, form: str) -> None:
    path = named(tmp_path, form, "v_a", "v_b", "v_c")
    (note,) = read_predictions(path, CLASSES, known(a=None, b=None)).notes
    assert note == f"{path}: videos named v_VIDEO: 2 joined, for example v_a as 'a'"
    assert numbers_by_id(path, known(a=None, b=None)) == {"a": 0, "b": 1, "v_c": 2}


def test_a_name_that_fits_two_videos_is_told(tmp_path: Path) -> None:
    path = named(tmp_path, "dense", "Tea", "b")
    found = read_predictions(path, CLASSES, known(tea=None, TEA=None, b=None))
    assert found.ids == ["Tea", "b"]
    assert "fits several videos: 1 not used, for example Tea" in found.notes[0]


@pytest.mark.parametrize("form", ["pickle", "dense", "results", "detect"])
@pytest.mark.parametrize(
    "names", [("monday", "monday.mp4"), ("Monday", "MONDAY"), ("Küche", "KÜCHE.mp4")]
)
def test_two_names_of_one_video_are_refused(
    tmp_path: Path, form: str, names: tuple[str, ...]
) -> None:
    path = named(tmp_path, form, *names)
    videos = [Video(id, None, "testing", 9.0) for id in ("monday", "Küche")]
    with pytest.raises(UsageError, match=r"two entries of one video id|both of the video"):
        read_predictions(path, CLASSES, videos)


def test_exact_names_are_not_told(tmp_path: Path) -> None:
    path = named(tmp_path, "results", "a", "b", "stranger")
    assert read_predictions(path, CLASSES, known(a=None, b=None, c=None)).notes == []


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_labels_of_segments_are_compared_by_their_unicode_form(
    forms: tuple[str, str], tmp_path: Path
) -> None:
    name, label = (unicodedata.normalize(form, "\u00f6ffnen") for form in forms)
    path = tmp_path / "p.json"
    segment = {"label": label, "segment": [0, 1], "score": 0.5}
    path.write_text(json.dumps({"results": {"v": [segment]}}), encoding="utf-8")
    found = read_predictions(path, ["sit", name]).segments
    assert found is not None
    assert [(s.class_id, s.label) for s in found["v"]] == [(1, name)]
