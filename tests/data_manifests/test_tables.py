"""Tables of users' own data, and the exports of BORIS and ELAN, in small files of their form."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstemba.data_manifests.annotations import read_annotations
from mstemba.data_manifests.manifest import Action, is_missing
from mstemba.data_manifests.readers.parsed import plain_text
from mstemba.data_manifests.readers.tables import parse_time
from mstemba.errors import ManifestError
from mstemba.limits import LONGEST_VIDEO

TIME = "time that is neither a number nor a clock time (0:01:02.5)"


def write(folder: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding, newline="")
    return path


PLAIN = """video,start,end,label,subset,duration
monday.mp4,1.5,3,pour,train,60
monday.mp4,2,4.25,stir,train,60
tuesday.MOV,0,1,stir,test,
calm,,,,test,12.5
"""


def test_a_plain_table_is_read(tmp_path: Path) -> None:
    manifest, report = read_annotations(write(tmp_path, PLAIN))
    assert (manifest.dataset, manifest.time_unit) == ("labels", "seconds")
    assert manifest.classes == ("pour", "stir")
    monday, tuesday, calm = manifest.videos.values()
    assert (monday.id, monday.subset, monday.duration) == ("monday", "training", 60.0)
    assert monday.actions == (Action(0, 1.5, 3.0), Action(1, 2.0, 4.25))
    assert (tuesday.id, tuesday.subset, tuesday.duration) == ("tuesday", "testing", None)
    assert (calm.subset, calm.duration, calm.actions) == ("testing", 12.5, ())
    assert report.kept == {"video without actions": 1}
    assert not report.skipped


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", ";").replace("4.25", "4,25"),
        PLAIN.replace("video,start", "Video, Start"),
        PLAIN.replace("end,label", "end_time,Action"),
        PLAIN.replace("\n", "\r\n") + "\r\n\r\n",
        "\n" + PLAIN.replace("2,4.25", "00:00:02.000,0:04.25"),
    ],
    ids=["tabs", "semicolons", "upper case", "spellings", "windows", "clock times"],
)
def test_a_plain_table_may_be_written_in_other_ways(tmp_path: Path, text: str) -> None:
    plain, _ = read_annotations(write(tmp_path, PLAIN))
    manifest, report = read_annotations(write(tmp_path / "other", text))
    assert manifest == plain
    assert not report.skipped


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_may_have_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "video,start,end,label\na,1,2,gießen\n", encoding=encoding)
    assert read_annotations(path)[0].classes == ("gießen",)


@pytest.mark.parametrize("name", ["labels.tsv", "labels.txt"])
def test_a_table_may_have_other_endings(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, "video\tstart\tend\tlabel\na\t1\t2\tsit\n", name)
    assert read_annotations(path)[0].videos["a"].actions == (Action(0, 1.0, 2.0),)


def test_given_classes_decide_the_numbers_of_the_labels(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN)
    manifest, report = read_annotations(path, classes=("stir", "run"))
    assert manifest.videos["monday"].actions == (Action(0, 2.0, 4.25),)
    assert report.skipped == {"unknown class name": 1}
    assert report.examples["unknown class name"] == "['pour', 1.5, 3.0] in labels.csv, line 2"


@pytest.mark.parametrize(
    "row",
    ["a,x,2,sit", "a,1,,sit", "a,1", "a,1,2,", ",1,2,sit", "a,nan,2,sit", "a,1,inf,sit", "a,,,sit"],
)
def test_a_malformed_row_is_counted_with_its_file_and_line(tmp_path: Path, row: str) -> None:
    manifest, report = read_annotations(
        write(tmp_path, f"video,start,end,label\na,1,2,sit\n{row}\nb,1,2,sit\n")
    )
    ((kind, count),) = report.skipped.items()
    assert (kind, count) == (TIME if row in ("a,x,2,sit", "a,1,inf,sit") else "malformed row", 1)
    assert report.examples[kind].endswith("in labels.csv, line 3")
    assert [len(v.actions) for v in manifest.videos.values()] == [1, 1]


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("v.csv", "video,start,end,label,Label"),
        ("v.csv", "video,start,start,end,label"),
        ("v.csv", "video,Video,start,end,label"),
        ("P02T01C06.csv", "event,start_frame,end_frame,Event"),
    ],
)
def test_two_columns_of_one_name_are_refused(name: str, header: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"several columns of one name, '(.*)', '(?i:\1)';"):
        read_annotations(write(tmp_path, f"{header}\na,1,2,3,4\n", name))


def test_of_two_columns_of_one_meaning_a_warning_says_which_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "video,start,end,behavior,label\na,1,2,run,sit\n")
    manifest, report = read_annotations(path)
    assert manifest.classes == ("sit",)
    (line,) = report.lines("doubts")
    assert line.endswith("'behavior' ('label' is read) in labels.csv")


def test_marks_in_quotes_do_not_separate_cells(tmp_path: Path) -> None:
    row = 'a,1,2,"pour;\nstir;"\n'
    manifest, _ = read_annotations(write(tmp_path, f"video,start,end,label\n{row}{row}"))
    assert manifest.classes == ("pour;\nstir;",)


MORE_CELLS = (
    "malformed row with more cells than columns (quote a text with commas; decimal commas need "
    "semicolons or tabs between the cells)"
)


@pytest.mark.parametrize(
    ("name", "header", "good", "row"),
    [
        ("v.csv", "video,start,end,label", "v,0,1,sit,,", "v.mp4,0.5,1.5,pour, then stir"),
        ("v.csv", "video,start,end,label,", "v,0,1,sit", "v.mp4,0,5,1,5,pour"),
        ("v.csv", "start,end,label", "0,1,sit,", "0,5,1,5,pour"),
        ("v.csv", "video;start;end;label", "v;0;1;sit", "v;2;3;a;b"),
        ("P02T01C06.csv", "event,start_frame,end_frame", "Enter,10,20,", "Walk,10,20,30"),
        ("v.csv", "Behavior,Start (s),Stop (s)", "sit,0,1,", "pour, then stir,2,3"),
        ("v.txt", "1.0\t2.0\tstand", "0.0\t1.0\tsit\t", "2.0\t3.0\tpour\tthen stir"),
        (
            "v.txt",
            "Begin Time - ss.msec\tEnd Time - ss.msec\tactor",
            "0\t1\tsit",
            "2\t3\tpour\tthen stir",
        ),
    ],
)
def test_a_row_with_more_cells_than_columns_is_skipped(
    name: str, header: str, good: str, row: str, tmp_path: Path
) -> None:
    unit = "frames" if "frame" in header else None
    path = write(tmp_path, f"{header}\n{good}\n{row}\n", name)
    manifest, report = read_annotations(path, time_unit=unit)
    (video,) = manifest.videos.values()
    labels = {manifest.classes[action.class_id] for action in video.actions}
    assert video.actions
    assert labels <= {"sit", "stand", "Enter"}
    assert report.skipped == {MORE_CELLS: 1}
    assert report.examples[MORE_CELLS].endswith(f" in {name}, line 3")


def test_a_note_below_a_column_without_a_name_is_no_part_of_the_action(tmp_path: Path) -> None:
    path = write(tmp_path, "video,start,end,label,\na,1,2,sit,my note\na,2,3,sit,\n")
    manifest, report = read_annotations(path)
    assert (len(manifest.videos["a"].actions), manifest.classes) == (2, ("sit",))
    assert not report.skipped


def test_rows_that_do_not_agree_on_their_video_are_counted(tmp_path: Path) -> None:
    rows = "a,1,2,sit,train,60\na,1,2,sit,test,61\na,1,2,sit,train,long\n"
    path = write(tmp_path, "video,start,end,label,subset,duration\n" + rows)
    manifest, report = read_annotations(path)
    assert (manifest.videos["a"].subset, manifest.videos["a"].duration) == ("training", 60.0)
    assert report.skipped == {
        "second subset of a video": 1,
        "second duration of a video": 1,
        "malformed duration": 1,
    }
    assert report.examples["second subset of a video"] == "'train' and 'test' in labels.csv, line 3"


@pytest.mark.parametrize("word", ["", "NA", "n/a", "None", "-", "nan", "?"])
def test_words_for_a_missing_value_are_no_value(tmp_path: Path, word: str) -> None:
    path = tmp_path / "t.csv"
    idle = ",".join([word] * 3)
    path.write_text(
        f"video,start,end,label,subset,duration,annotated_until\n"
        f"a,1,2,none,{word},{word},{word}\na,3,4,walk,trn,9,8\nb,{idle},train,{word},{word}\n"
    )
    manifest, report = read_annotations(path)
    assert manifest.classes == ("none", "walk")  # which is a label like others
    a, b = manifest.videos.values()
    assert (a.subset, a.duration, a.annotated_until, len(a.actions)) == ("training", 9, 8, 2)
    assert (b.subset, b.duration, b.annotated_until, b.actions) == ("training", None, None, ())
    assert not report.skipped


def test_a_subset_may_be_spelled_in_several_ways(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("video,start,end,label,subset\na,1,2,walk,Train\na,3,4,walk,training\n")
    manifest, report = read_annotations(path)
    assert manifest.videos["a"].subset == "training"
    assert not report.skipped


def test_a_table_may_say_up_to_when_a_video_is_annotated(tmp_path: Path) -> None:
    text = (
        "video;start;end;label;annotated_until\na;1;2;sit;1:02,5\na;3;4;sit;\na;70;71;sit;62.5\n"
        "b;1;2;sit;\nc;1;2;sit;0\nc;1;2;sit;9\nd;1;2;sit;half\ne;1;2;sit;-3\n"
    )
    manifest, report = read_annotations(write(tmp_path, text))
    found = {id: video.annotated_until for id, video in manifest.videos.items()}
    assert found == {"a": 62.5, "b": None, "c": 0.0, "d": None, "e": None}
    assert report.skipped == {
        "malformed annotated_until": 2,
        "second annotated_until of a video": 1,
    }
    assert report.examples["malformed annotated_until"] == "'half' in labels.csv, line 8"
    # The one of `a`, and both of `c`.
    assert report.kept["action after annotated_until, which does not count"] == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        (",,,\n", "the file is empty"),
        (";;\n;\n", "the file is empty"),
        ("video,start,end,label\n", "no entries"),
        ("video,from,to,label\na,1,2,sit\n", "found the columns video, from, to, label; expected"),
        ("some words\n", "found the columns some words; expected a table with the columns video,"),
        ('video,start,end,label\na,1,2,"sit\n', "line 2: unexpected end of data"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        read_annotations(write(tmp_path, text))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("labels.xlsx", "save it as CSV"),
        ("project.boris", "export the events"),
        ("labels.ods", "save it as CSV"),
    ],
)
def test_other_files_are_refused_with_advice(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        read_annotations(write(tmp_path, "x", name))


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"video,start\n\xff\xfe\x00")
    with pytest.raises(ManifestError, match="not readable as text"):
        read_annotations(tmp_path / "labels.csv")
    with pytest.raises(ManifestError, match=r"none\.csv: no such file"):
        read_annotations(tmp_path / "none.csv")


def test_a_folder_of_tables_is_read_as_one(tmp_path: Path) -> None:
    write(tmp_path, "video,start,end,label\na,1,2,sit\n", "one.csv")
    write(tmp_path, "video\tstart\tend\tlabel\nb\t1\t2\trun\n", "more/two.tsv")
    write(tmp_path, "What these are.\n", "readme.txt")
    write(tmp_path, ";;\n", "empty.csv")
    manifest, report = read_annotations(tmp_path)
    assert {id: v.actions for id, v in manifest.videos.items()} == {
        "b": (Action(0, 1.0, 2.0),),
        "a": (Action(1, 1.0, 2.0),),
    }
    assert report.skipped == {"file of an unknown form": 2}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no file of annotations; expected a table"),
        ({"readme.txt": "words"}, "none of readme.txt is one; expected a table"),
    ],
)
def test_a_folder_without_annotations_is_refused(
    tmp_path: Path, files: dict[str, str], says: str
) -> None:
    for name, text in files.items():
        write(tmp_path, text, name)
    with pytest.raises(ManifestError, match=says):
        read_annotations(tmp_path)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("12", 12.0),
        ("1e3", 1000.0),
        ("-1.5", -1.5),
        (".5", 0.5),
        ("12,5", 12.5),
        ("0,250", 0.25),
        ("1:02.5", 62.5),
        ("90:15", 5415.0),
        ("100:00:01", 360_001.0),
        ("01:00:00.25", 3600.25),
        ("00:00:01,250", 1.25),
    ],
)
def test_times_are_read(text: str, time: float) -> None:
    assert parse_time(text) == time


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "nan", "inf", "1e999", "1_000", "0x10", "1 000", "٣"),
        *("1,234", "12,345", "1,234.5", "1,234,567"),
        *("1:2:3:4", "-1:00", "1:75", "1:75:00", "1:00:60", "1:5_0"),
        pytest.param("9" * 400 + ":00", id="a clock beyond any float"),
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_time(text)


@pytest.mark.parametrize("text", ["12,5", "1:02,5", "0,250"])
def test_where_commas_part_the_cells_they_are_no_decimal_marks(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_time(text, decimal_comma=False)
    path = write(tmp_path, f'video,start,end,label\na,0,"{text}",sit\na,1,2,sit\n')
    manifest, report = read_annotations(path)
    assert manifest.videos["a"].actions == (Action(0, 1.0, 2.0),)
    assert report.skipped == {TIME: 1}
    assert report.examples[TIME].endswith("in labels.csv, line 2")
    semicolons = f"video;start;end;label\na;0;{text};sit\n"
    assert len(read_annotations(write(tmp_path, semicolons))[0].videos["a"].actions) == 1


cells = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)
    .map(str.strip)
    .filter(lambda text: not is_missing(text))
)
names = cells.filter(lambda name: "." not in name)
moments = st.floats(0, LONGEST_VIDEO)
rows = st.lists(st.tuples(names, moments, moments, cells), min_size=1, max_size=8)


@given(rows=rows, delimiter=st.sampled_from(",;\t"))
def test_what_is_written_as_a_table_comes_back(
    rows: list[tuple[str, float, float, str]],
    delimiter: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["video", "start", "end", "label"])
    writer.writerows((id, repr(start), repr(stop), label) for id, start, stop, label in rows)
    path = write(tmp_path_factory.mktemp("t"), text.getvalue())
    manifest, report = read_annotations(path)
    assert not report.skipped
    assert [
        (id, start, stop, plain_text(label) or label)
        for id, start, stop, label in sorted(rows, key=lambda row: row[0])
    ] == [
        (id, action.start, action.end, manifest.classes[action.class_id])
        for id, video in sorted(manifest.videos.items())
        for action in video.actions
    ]


# BORIS

AGGREGATED = """\
Observation id,Observation date,Description,Observation type,Source,Time offset (s),Coding duration,Media duration (s),FPS,Subject,Observation duration by subject by observation,Behavior,Behavioral category,Modifier #1,Behavior type,Start (s),Stop (s),Duration (s),Media file name,Image index start,Image index stop,Image file path start,Image file path stop,Comment start,Comment stop
obs1,2024-05-01 10:00:00,,Media file(s),player #1:/data/cage1.mp4,0.0,29.000,30.000,25.000,rat,12.5,groom,care,,STATE,1.250,2.750,1.500,/data/cage1.mp4,31,69,NA,NA,,
obs1,2024-05-01 10:00:00,,Media file(s),player #1:/data/cage1.mp4,0.0,29.000,30.000,25.000,No focal subject,1,rear,,,POINT,4.000,4.000,0.000,/data/cage1.mp4,100,100,NA,NA,"a, b",
obs2,2024-05-02 10:00:00,,Live observation,NA,0.0,20.000,NA,NA,rat,12.5,groom,care,,STATE,0.5,2,1.5,NA,NA,NA,NA,NA,,
"""  # noqa: E501
TABULAR_HEADER = (
    "Observation id,Observation date,Description,Observation duration,Observation type,Source,"
    "Time offset (s),Media duration (s),FPS,Subject,Behavior,Behavioral category,Modifier #1,"
    "Behavior type,Time,Media file name,Image index,Image file path,Comment\n"
)


def tabular(*events: str, source: str = "player #1:C:\\films\\cage1.mp4", offset: str = "0") -> str:
    """Rows of `subject,behaviour,modifier,status,time` between the columns that stay."""
    rows = []
    for event in events:
        subject, behavior, modifier, status, time = event.split(",")
        rows.append(
            f"obs1,2024-05-01,,30.0,Media file(s),{source},{offset},30.000,25.000,{subject},"
            f"{behavior},,{modifier},{status},{time},C:\\films\\cage1.mp4,1,NA,\n"
        )
    return TABULAR_HEADER + "".join(rows)


# Version 7 and before: lines about the observation, an empty one, and other columns.
TABULAR_OLD = """\
Observation id\tobs1

Media file(s)

Player #1\tfilms/cage1.mp4

Observation date\t2019-05-01 10:00:00

Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tBehavioral category\tModifiers\tComment\tStatus
1.25\tfilms/cage1.mp4\t30.0\t25.0\trat\tgroom\t\t\t\tSTART
2.75\tfilms/cage1.mp4\t30.0\t25.0\trat\tgroom\t\t\t\tSTOP
4.0\tfilms/cage1.mp4\t30.0\t25.0\t\trear\t\t\t\tPOINT
"""  # noqa: E501


def test_aggregated_events_of_boris_are_read(tmp_path: Path) -> None:
    manifest, report = read_annotations(write(tmp_path, AGGREGATED))
    assert manifest.classes == ("groom", "rear")
    assert manifest.videos["cage1"].actions == (Action(0, 1.25, 2.75), Action(1, 4.0, 4.0))
    assert manifest.videos["cage1"].duration == 30.0
    assert manifest.videos["obs2"].actions == (Action(0, 0.5, 2.0),)
    assert report.kept == {"action without length": 1}
    assert not report.skipped


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (tabular("rat,groom,,START,1.25", "rat,groom,,STOP,2.75", ",rear,,POINT,4.0"), "e.csv"),
        (TABULAR_OLD, "e.tsv"),
    ],
    ids=["version 8", "version 7"],
)
def test_tabular_events_of_boris_are_paired(tmp_path: Path, text: str, name: str) -> None:
    manifest, report = read_annotations(write(tmp_path, text, name))
    (video,) = manifest.videos.values()
    assert (video.id, video.duration) == ("cage1", 30.0)
    assert video.actions == (Action(0, 1.25, 2.75), Action(1, 4.0, 4.0))
    assert not report.skipped


def test_events_of_two_subjects_or_modifiers_are_not_paired_with_each_other(
    tmp_path: Path,
) -> None:
    events = tabular(
        "rat,groom,left,START,1",
        "cat,groom,left,START,2",
        "rat,groom,right,START,3",
        "rat,groom,left,STOP,4",
        "rat,groom,right,STOP,5",
        "cat,groom,left,STOP,6",
    )
    manifest, report = read_annotations(write(tmp_path, events))
    assert sorted(manifest.videos["cage1"].actions) == [
        Action(0, 1.0, 4.0),
        Action(0, 2.0, 6.0),
        Action(0, 3.0, 5.0),
    ]
    assert not report.skipped


def test_events_of_boris_without_partner_are_counted_with_file_and_line(tmp_path: Path) -> None:
    events = tabular(
        "rat,groom,,STOP,1",
        "rat,groom,,START,2",
        "rat,groom,,START,3",
        "rat,groom,,STOP,4",
        "rat,rear,,START,5",
        "rat,rear,,PAUSE,6",
        "rat,dig,,POINT,soon",
    )
    manifest, report = read_annotations(write(tmp_path, events))
    assert manifest.videos["cage1"].actions == (Action(0, 2.0, 4.0),)
    assert report.skipped == {
        "BORIS STOP without its partner": 1,
        "BORIS START without its partner": 2,
        "malformed row": 2,
    }
    assert report.examples["BORIS STOP without its partner"] == "'groom' in labels.csv, line 2"
    assert report.examples["BORIS START without its partner"] == "'groom' in labels.csv, line 4"


# ELAN

ELAN_ROWS = """\
"#file:///D:/My%20films/cage%201.mp4 -- offset: 0"
actor\tanna\t00:00:00.780\t0.78\t780\t00:00:01.340\t1.34\t1340\t00:00:00.560\t0.56\t560\tgroom
actor\tanna\t00:01:02.500\t62.5\t62500\t00:01:03.000\t63.0\t63000\t00:00:00.500\t0.5\t500\trear up
digging\tanna\t00:00:04.000\t4.0\t4000\t00:00:05.000\t5.0\t5000\t00:00:01.000\t1.0\t1000\t
"""
ELAN_ACTIONS = [Action(1, 0.78, 1.34), Action(2, 62.5, 63.0), Action(0, 4.0, 5.0)]
ELAN_COLUMNS = """\
Begin Time - hh:mm:ss.ms\tBegin Time - ss.msec\tEnd Time - hh:mm:ss.ms\tEnd Time - ss.msec\tDuration - hh:mm:ss.ms\tDuration - ss.msec\tactor\tother
00:00:00.780\t0.78\t00:00:01.340\t1.34\t00:00:00.560\t0.56\tgroom\t
00:01:02.500\t62.5\t00:01:03.000\t63.0\t00:00:00.500\t0.5\trear up\t
00:00:04.000\t4.0\t00:00:05.000\t5.0\t00:00:01.000\t1.0\t\tdigging
"""  # noqa: E501


def test_an_export_of_elan_without_header_is_read(tmp_path: Path) -> None:
    manifest, report = read_annotations(write(tmp_path, ELAN_ROWS, "session.txt"))
    assert manifest.classes == ("digging", "groom", "rear up")
    assert list(manifest.videos) == ["cage 1"]  # named by the media line
    assert list(manifest.videos["cage 1"].actions) == ELAN_ACTIONS
    assert not report.skipped


def test_without_a_media_line_the_file_names_the_video(tmp_path: Path) -> None:
    path = write(tmp_path, ELAN_ROWS.split("\n", 1)[1], "session.txt")
    assert list(read_annotations(path)[0].videos) == ["session"]


@pytest.mark.parametrize(
    "text",
    [
        ELAN_COLUMNS,
        '"#file:///session.mp4 -- offset: 0"\n' + ELAN_COLUMNS,
        "\n".join("\t".join(line.split("\t")[::1]) for line in ELAN_COLUMNS.splitlines()),
        ELAN_COLUMNS.replace("\t", ","),
    ],
    ids=["plain", "media line", "no last line end", "csv"],
)
def test_an_export_of_elan_with_a_column_a_tier_is_read(tmp_path: Path, text: str) -> None:
    manifest, report = read_annotations(write(tmp_path, text, "session.txt"))
    assert list(manifest.videos) == ["session"]
    assert list(manifest.videos["session"].actions) == ELAN_ACTIONS
    assert not report.skipped


@pytest.mark.parametrize(
    ("form", "begin", "end"),
    [
        ("hh:mm:ss.ms", "00:01:02.500", "00:01:03.100"),
        ("ss.msec", "62.5", "63.1"),
        ("msec", "62500", "63100"),
    ],
)
def test_every_form_of_time_will_do(tmp_path: Path, form: str, begin: str, end: str) -> None:
    text = f"Begin Time - {form}\tEnd Time - {form}\tactor\n{begin}\t{end}\tsit\n"
    manifest, _ = read_annotations(write(tmp_path, text, "s.txt"))
    assert manifest.videos["s"].actions == (Action(0, 62.5, 63.1),)


def test_an_export_of_several_files_names_them_in_a_column(tmp_path: Path) -> None:
    text = (
        "Begin Time - ss.msec\tEnd Time - ss.msec\tactor\tFile Name\tFile Path\n"
        "1.0\t2.0\tsit\ta.eaf\t/x/a.eaf\n1.5\t2.5\tsit\tb.eaf\t/x/b.eaf\n"
    )
    manifest, _ = read_annotations(write(tmp_path, text, "s.txt"))
    assert {id: v.actions for id, v in manifest.videos.items()} == {
        "a": (Action(0, 1.0, 2.0),),
        "b": (Action(0, 1.5, 2.5),),
    }
    rows = ELAN_ROWS.split("\n")[1] + "\t/x/c.eaf\n"
    assert list(read_annotations(write(tmp_path, rows, "s.txt"))[0].videos) == ["c"]


def test_odd_rows_of_elan_are_counted_with_file_and_line(tmp_path: Path) -> None:
    rows = ELAN_ROWS + "actor\tanna\t4.0\tgroom\n"
    _, report = read_annotations(write(tmp_path, rows, "s.txt"))
    assert report.skipped == {"malformed row": 1}
    assert report.examples["malformed row"].endswith("in s.txt, line 5")
    _, report = read_annotations(write(tmp_path, ELAN_COLUMNS + "\t\t\t\t\t\tgroom\t\n", "s.txt"))
    assert report.skipped == {"malformed row": 1}


def test_an_action_counts_once_however_its_files_round(tmp_path: Path) -> None:
    head = "video,start,end,label\n"
    starts = [1.0, 2.0004, 2.9996, 7.4995, 7.5]
    for file, shift in (("a.csv", 0.0), ("b.csv", 0.0014)):
        rows = "".join(f"v,{s + shift:.4f},{s + 9:.4f},x\n" for s in starts)
        (tmp_path / file).write_text(head + rows, encoding="utf-8")
    manifest, report = read_annotations(tmp_path)
    assert [a.start for a in manifest.videos["v"].actions] == starts
    assert report.ignored["action that is in another file, too"] == len(starts)
