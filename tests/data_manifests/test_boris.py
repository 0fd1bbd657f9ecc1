"""Exports of BORIS whose times are not those of one video, and columns that users add."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Manifest
from mstemba.data_manifests.readers.parsed import AnnotationReport
from mstemba.errors import ManifestError
from tests.command_line import Runner

TABULAR = (
    "Observation id,Observation date,Description,Observation duration,Observation type,Source,"
    "Time offset (s),Media duration (s),FPS,{extra}Subject,Behavior,Behavioral category,"
    "Behavior type,Time,Media file name,Image index,Image file path,Comment\n"
)
AGGREGATED = (
    "Observation id,Observation date,Description,Observation type,Source,Time offset (s),"
    "Coding duration,Media duration (s),FPS (frame/s),{extra}Subject,"
    "Observation duration by subject by observation,Behavior,Behavioral category,Behavior type,"
    "Start (s),Stop (s),Duration (s),Media file name,Comment start,Comment stop\n"
)


def export(
    *actions: str,
    source: str = "player #1:v/cage1.mp4",
    offset: str = "0.0",
    lengths: str = "30.000",
    extra: tuple[str, str] = ("", ""),
    media: str = "v/cage1.mp4",
    aggregated: bool = False,
    observation: str = "obs1",
) -> str:
    """Return an export of actions such as `groom 5 9`; one with a single time is a point event."""
    rows = [(AGGREGATED if aggregated else TABULAR).format(extra=extra[0])]
    for action in actions:
        label, *times = action.split()
        if aggregated:
            what = "POINT" if len(times) == 1 else "STATE"
            rows.append(
                f"{observation},2024-05-01 10:00:00,,Media file,{source},{offset},30.0,{lengths},"
                f"25.000,{extra[1]}rat,3.0,{label},care,{what},{times[0]},{times[-1]},NA,{media},,\n"
            )
            continue
        for what, moment in zip(("START", "STOP") if times[1:] else ("POINT",), times, strict=True):
            rows.append(
                f"{observation},2024-05-01 10:00:00,,30.0,Media file(s),{source},{offset},"
                f"{lengths},25.000,{extra[1]}rat,{label},care,{what},{moment},{media},1,NA,\n"
            )
    return "".join(rows)


def read(tmp_path: Path, text: str) -> tuple[Manifest, AnnotationReport]:
    path = tmp_path / "events.csv"
    path.write_text(text, encoding="utf-8")
    return read_annotations(path)


def times(manifest: Manifest) -> dict[str, list[tuple[str, float, float]]]:
    """Return class, start and end of the actions by video."""
    return {
        id: [(manifest.classes[a.class_id], a.start, a.end) for a in video.actions]
        for id, video in manifest.videos.items()
    }


both = pytest.mark.parametrize("aggregated", [False, True], ids=["tabular", "aggregated"])
MOVED = "BORIS action moved by the time offset of its observation"


@both
@pytest.mark.parametrize(
    ("offset", "start", "stop", "point"),
    [
        ("5400.0", "5405.000", "5409.000", "5420"),
        ("01:30:00", "5405.000", "5409.000", "5420"),
        ("01:30:00.000", "01:30:05.000", "01:30:09.000", "01:30:20"),
        ("1714557600.0", "1714557605.000", "1714557609.000", "1714557620"),
        ("2024-05-01 10:00:00", "1714557605.000", "1714557609.000", "1714557620"),
        (
            "2024-05-01T10:00:00",
            "2024-05-01T10:00:05",
            "2024-05-01T10:00:09",
            "2024-05-01T10:00:20",
        ),
        ("-60.0", "-55.000", "-51.000", "-40"),
    ],
)
def test_a_time_offset_is_subtracted(
    offset: str, start: str, stop: str, point: str, aggregated: bool, tmp_path: Path
) -> None:
    actions = (f"groom {start} {stop}", f"rear {point}")
    manifest, report = read(tmp_path, export(*actions, offset=offset, aggregated=aggregated))
    assert times(manifest) == {"cage1": [("groom", 5.0, 9.0), ("rear", 20.0, 20.0)]}
    assert report.joined[MOVED] == 2
    assert report.examples[MOVED].startswith("'groom' from ")
    assert report.examples[MOVED].endswith(" in events.csv, line 2")
    assert set(report.kept) == {"action without length"}


@both
@pytest.mark.parametrize("column", ["Time offset", "time offset (s)", "Time offset (hh:mm:ss)"])
def test_the_column_of_the_time_offset_has_several_names(
    column: str, aggregated: bool, tmp_path: Path
) -> None:
    text = export("groom 65 69", offset="00:01:00", aggregated=aggregated)
    manifest, _ = read(tmp_path, text.replace("Time offset (s)", column))
    assert times(manifest) == {"cage1": [("groom", 5.0, 9.0)]}


def test_version_7_has_the_time_offset_above_the_table(tmp_path: Path) -> None:
    text = (
        "Observation id\tobs1\n\nMedia file(s)\n\nPlayer #1\tv/cage1.mp4\n\n"
        "Time offset (s)\t5400.0\n\nTime\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\t"
        "Behavioral category\tModifiers\tComment\tStatus\n"
        "5405.0\tv/cage1.mp4\t30.0\t25.0\trat\tgroom\t\t\t\tSTART\n"
        "5409.0\tv/cage1.mp4\t30.0\t25.0\trat\tgroom\t\t\t\tSTOP\n"
    )
    manifest, report = read(tmp_path, text)
    assert times(manifest) == {"cage1": [("groom", 5.0, 9.0)]}
    assert report.joined[MOVED] == 1


def test_each_observation_has_its_own_offset(tmp_path: Path) -> None:
    one = export("groom 105 109", offset="100", observation="one")
    two = export("dig 1 2", observation="two", media="v/b.mp4", source="player #1:v/b.mp4")
    manifest, report = read(tmp_path, one + two.split("\n", 1)[1])
    assert times(manifest) == {"cage1": [("groom", 5.0, 9.0)], "b": [("dig", 1.0, 2.0)]}
    assert report.joined[MOVED] == 1


@pytest.mark.parametrize("offset", ["5400.0", "01:30:00", "12.5"])
def test_times_that_do_not_include_the_offset_stay_as_they_are(offset: str, tmp_path: Path) -> None:
    manifest, report = read(tmp_path, export("groom 5 9", offset=offset))
    assert times(manifest) == {"cage1": [("groom", 5.0, 9.0)]}
    assert report.joined == {"BORIS time offset that the times do not include (not subtracted)": 1}


@pytest.mark.parametrize(
    ("offset", "actions", "start", "kind"),
    [
        ("3", ["groom 5 9"], 2.0, "may not include (subtracted, as BORIS adds it)"),
        ("3", ["groom 5 50"], 5.0, "does not fit the times (not subtracted)"),
        ("soon", ["groom 5 9"], 5.0, "cannot be read (not subtracted)"),
    ],
)
def test_a_doubtful_offset_is_a_warning(
    offset: str, actions: list[str], start: float, kind: str, tmp_path: Path
) -> None:
    manifest, report = read(tmp_path, export(*actions, offset=offset))
    assert manifest.videos["cage1"].actions[0].start == start
    (found,) = (name for name in report.kept if name.startswith("BORIS"))
    assert kind in found
    assert report.examples[found] == f"{offset!r} in events.csv, line 2"


@pytest.mark.parametrize(("offset", "doubtful"), [("5400", False), ("3", True), ("NA", False)])
def test_without_durations_the_first_time_decides(
    offset: str, doubtful: bool, tmp_path: Path
) -> None:
    start = 5409 if offset == "5400" else 9
    manifest, report = read(
        tmp_path, export(f"groom {start} {start + 1}", offset=offset, lengths="NA")
    )
    assert manifest.videos["cage1"].actions[0].start == (6.0 if doubtful else 9.0)
    assert any("time offset" in kind for kind in report.kept) == doubtful


# Queues of media files

QUEUE = "player #1:v/a.mp4;v/b.mp4"
CUT = "BORIS action cut at the border of two media files"
LATER = "BORIS action in a later media file, in the times of that file"


@both
@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("groom 2 5", {"a": [(2.0, 5.0)], "b": []}),
        ("groom 13 16", {"a": [], "b": [(3.0, 6.0)]}),
        ("groom 8 13", {"a": [(8.0, 10.0)], "b": [(0.0, 3.0)]}),
        ("groom 8 10", {"a": [(8.0, 10.0)], "b": []}),
        ("groom 10 12", {"a": [], "b": [(0.0, 2.0)]}),
        ("groom 4", {"a": [(4.0, 4.0)], "b": []}),
        ("groom 10", {"a": [], "b": [(0.0, 0.0)]}),
        ("groom 19 22", {"a": [], "b": [(9.0, 12.0)]}),
        ("groom 13 12", {"a": [], "b": [(3.0, 2.0)]}),
    ],
)
def test_an_action_is_in_the_media_file_of_its_time(
    action: str, expected: dict[str, list[tuple[float, float]]], aggregated: bool, tmp_path: Path
) -> None:
    media = "v/a.mp4" if expected["a"] else "v/b.mp4"
    text = export(action, source=QUEUE, lengths="10.000;10.000", media=media, aggregated=aggregated)
    manifest, report = read(tmp_path, text)
    found = {id: [(a.start, a.end) for a in v.actions] for id, v in manifest.videos.items()}
    assert found == expected
    assert [video.duration for video in manifest.videos.values()] == [10.0, 10.0]
    assert report.joined[CUT] == (len(expected["a"]) + len(expected["b"]) - 1)
    assert report.joined[LATER] == len(expected["b"])
    assert not report.skipped
    assert not any("media file" in kind for kind in report.kept)


def test_a_queue_may_have_any_number_of_files_and_an_offset(tmp_path: Path) -> None:
    text = export(
        "groom 109 125.5",
        source="player #1:v/a.mp4;v/b.mp4;v/c.mp4|player #2:v/x.mp4;v/y.mp4;v/z.mp4",
        lengths="10.000;12.500;10.000|10.000;12.500;10.000",
        offset="100",
        media="v/a.mp4",
    )
    manifest, report = read(tmp_path, text)
    assert times(manifest) == {
        "a": [("groom", 9.0, 10.0)],
        "b": [("groom", 0.0, 12.5)],
        "c": [("groom", 0.0, 3.0)],
    }
    assert report.examples[CUT] == "'groom' at 9 to 25.5 s in events.csv, line 2"


@pytest.mark.parametrize(
    "source",
    [
        "player #1:v/cage1.mp4|player #2:v/top.mp4",
        "player #1: v/cage1.mp4 player #2: v/top.mp4",
        "player #1:v/cage1.mp4;player #2:v/top.mp4",
        "|player #2:v/cage1.mp4",
        "v/cage1.mp4",
    ],
)
def test_of_several_players_the_first_counts(source: str, tmp_path: Path) -> None:
    lengths = "30.000|30.000" if "|player #2:v/top" in source else "30.000"
    manifest, report = read(tmp_path, export("groom 5 9", source=source, lengths=lengths))
    assert times(manifest) == {"cage1": [("groom", 5.0, 9.0)]}
    assert manifest.videos["cage1"].duration == 30.0
    assert not report.skipped


def test_a_semicolon_in_a_name_is_no_queue(tmp_path: Path) -> None:
    name = "v/cage 1; light.mp4"
    manifest, report = read(tmp_path, export("groom 5 9", source=f"player #1:{name}", media=name))
    assert times(manifest) == {"cage 1; light": [("groom", 5.0, 9.0)]}
    assert not report.skipped


@pytest.mark.parametrize("lengths", ["NA", "", "10.000", "10.000;NA", "20.0"])
def test_a_queue_without_durations_is_skipped_and_the_rest_is_read(
    lengths: str, tmp_path: Path, mstemba: Runner
) -> None:
    queue = export("groom 2 5", "dig 13 16", source=QUEUE, lengths=lengths, media="v/a.mp4")
    other = export("dig 1 2", observation="two", media="v/c.mp4", source="player #1:v/c.mp4")
    (tmp_path / "events.csv").write_text(queue + other.split("\n", 1)[1])
    said = mstemba("init", "--annotations", "events.csv", cwd=tmp_path, expect=1).stderr
    assert "media files whose durations the export does not have" in said
    assert "2 skipped, for example 'groom' in events.csv, line 2" in said
    manifest, _ = read_annotations(tmp_path / "events.csv")
    assert times(manifest) == {"c": [("dig", 1.0, 2.0)]}
    with pytest.raises(ManifestError, match="durations the export does not have"):
        read(tmp_path, queue)


def test_a_queue_of_version_7_is_skipped(tmp_path: Path) -> None:
    text = (
        "Player #1\tv/a.mp4\nPlayer #1\tv/b.mp4\n\nTime\tMedia file path\tTotal length\tFPS\t"
        "Subject\tBehavior\tComment\tStatus\n13.0\tv/b.mp4\t20.0\t25.0\trat\tdig\t\tPOINT\n"
    )
    with pytest.raises(ManifestError, match="durations the export does not have"):
        read(tmp_path, text)


def test_a_row_that_names_another_media_file_is_a_warning(tmp_path: Path) -> None:
    queue = export("groom 2 5", source=QUEUE, lengths="10.000;10.000", media="v/b.mp4")
    one = export("groom 2 5", media="v/other.mp4") + export("dig 2 3").split("\n", 1)[1]
    kind = "BORIS event whose media file is not the one at its time"
    assert read(tmp_path, queue)[1].examples[kind] == (
        "'v/b.mp4', not 'v/a.mp4' in events.csv, line 2"
    )
    assert read(tmp_path, one)[1].kept[kind] == 1


# Users' own columns


@both
@pytest.mark.parametrize(
    "extra",
    [
        ("time,sex,", "10:30,f,"),
        ("Time,Behavior,", "7,wild,"),
        ("Behavior type,Subject,", "x,y,"),
        ("Start (s),Stop (s),", "100,200,"),
        ("Media file name,Source,", "other.mp4,other.mp4,"),
        ("Time offset (s),Media duration (s),", "99,1,"),
        ("Observation id,status,Modifier 9,", "o,DONE,m,"),
    ],
)
def test_columns_of_users_may_have_the_names_of_boris_columns(
    extra: tuple[str, str], aggregated: bool, tmp_path: Path
) -> None:
    text = export("groom 5 9", "rear 12", extra=extra, aggregated=aggregated)
    manifest, report = read(tmp_path, text)
    assert times(manifest) == {"cage1": [("groom", 5.0, 9.0), ("rear", 12.0, 12.0)]}
    assert manifest.videos["cage1"].duration == 30.0
    assert not report.skipped
    assert not report.joined
    assert set(report.kept) == {"action without length"}


@both
def test_cells_without_media_are_missing(aggregated: bool, tmp_path: Path) -> None:
    text = export("groom 5 9", source="NA", lengths="NA", media="NA", aggregated=aggregated)
    manifest, report = read(tmp_path, text.replace(",25.000,", ",NA,"))
    assert times(manifest) == {"obs1": [("groom", 5.0, 9.0)]}
    assert manifest.videos["obs1"].duration is None
    assert not report.skipped


@pytest.mark.slow
@both
def test_large_exports_are_read_in_time_that_grows_with_their_rows(
    aggregated: bool, tmp_path: Path
) -> None:
    seconds = []
    for count in (10_000, 40_000):
        actions = (f"groom {100 + n % 20} {101 + n % 20}" for n in range(count))
        text = export(*actions, offset="100", aggregated=aggregated)
        begin = time.process_time()
        assert read(tmp_path, text)[1].joined[MOVED] == count
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 10 * seconds[0]
