"""What is known of the published datasets agrees with the published files."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from mstemba.data_manifests.datasets import DATASETS, Dataset, load_dataset, recognise
from mstemba.errors import UsageError

FILES = {"charades": "charades", "tsu": "smarthome", "multithumos": "multithumos"}
SIZES = {"charades": 157, "tsu": 51, "multithumos": 65}

# Actions of each class in MultiTHUMOS' files by class, an independent count; five classes have
# more there than in the JSON.
MULTITHUMOS = {
    "Run": 3693, "Jump": 3496, "Walk": 3059, "Throw": 1971, "Sit": 1798, "BodyContract": 1660,
    "Fall": 1105, "BodyRoll": 1058, "Diving": 887, "StandUp": 810, "BasketballShot": 802,
    "BasketballDunk": 791, "Squat": 780, "ClapHands": 680, "PoleVault": 519,
    "PoleVaultPlantPole": 486, "TwoHandedCatch": 464, "HammerThrowRelease": 428, "BodyBend": 411,
    "HighJump": 406, "HammerThrowSpin": 404, "JavelinThrow": 361, "CliffDiving": 360,
    "TwoRaisedArmCelebrate": 353, "CricketShot": 351, "HammerThrowWindUp": 340, "PickUp": 326,
    "CricketBowling": 316, "LongJump": 305, "BasketballGuard": 298, "BasketballDribble": 287,
    "OneHandedCatch": 272, "VolleyballSpiking": 266, "DiscusWindUp": 229,
    "OneRaisedArmCelebrate": 220, "DiscusRelease": 218, "Shotput": 214, "BasketballPass": 212,
    "TennisSwing": 210, "ThrowDiscus": 208, "Drop": 195, "Billiards": 187, "FistPump": 168,
    "ShotPutBend": 152, "FrisbeeCatch": 151, "CleanAndJerk": 140, "BasketballBlock": 134,
    "WeightliftingJerk": 121, "VolleyballSet": 118, "BodyTurn": 117, "SoccerPenalty": 114,
    "WeightliftingClean": 110, "VolleyballBlock": 101, "Hug": 96, "HighFive": 94,
    "BaseballPitch": 71, "GolfSwing": 67, "PatPerson": 46, "VolleyballServe": 30,
    "VolleyballBump": 15,
}  # fmt: skip


def published(shared: Path, name: str) -> dict[str, Any]:
    path = shared / "annotations" / f"{FILES[name]}.json"
    entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return entries


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_loads(name: str) -> None:
    dataset = load_dataset(name)
    assert dataset.name == name
    assert len(dataset.classes) == len(set(dataset.classes)) == SIZES[name]
    assert dataset.time_unit == ("frames" if name == "tsu" else "seconds")
    assert (dataset.fps is not None) == (dataset.time_unit == "frames")
    assert set(dataset.aliases.values()) <= set(dataset.classes)
    assert not set(dataset.aliases) & set(dataset.classes)


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(UsageError, match="'thumos'; available: charades, tsu, multithumos"):
        load_dataset("thumos")


@pytest.mark.parametrize("name", DATASETS)
def test_ids_classes_and_subsets_are_those_of_the_published_file(shared: Path, name: str) -> None:
    dataset, entries = load_dataset(name), published(shared, name)
    assert all(map(dataset.owns, entries))
    assert recognise(entries) is dataset
    used = {action[0] for entry in entries.values() for action in entry["actions"]}
    assert used == set(range(len(dataset.classes)))
    rule = dataset.split()
    counts = Counter(entry["subset"] for entry in entries.values())
    assert counts == (dataset.videos if rule is None else rule.videos)
    if rule is not None:
        assert {id: dataset.subset(id, rule) for id in entries} == {
            id: entry["subset"] for id, entry in entries.items()
        }


def test_no_form_of_id_is_another_datasets(shared: Path) -> None:
    for name in DATASETS:
        others = [load_dataset(other) for other in DATASETS if other != name]
        assert not any(o.owns(id) for o in others for id in published(shared, name))


def test_the_cross_view_split_of_tsu_parts_the_cameras(shared: Path) -> None:
    tsu = load_dataset("tsu")
    rule = tsu.split("cross-view")
    assert rule is not None
    found = {id: tsu.subset(id, rule) for id in published(shared, "tsu")}
    assert Counter(found.values()) == rule.videos == {"training": 369, "testing": 167}
    # As in the published smarthome_CV_51.json.
    assert found["P11T15C01"] == found["P07T01C03"] == found["P25T07C04"] == "training"
    assert found["P15T14C06"] == found["P18T14C07"] == "training"
    assert found["P07T01C05"] == found["P04T13C02"] == "testing"


def test_an_id_beyond_the_split_has_no_subset() -> None:
    tsu = load_dataset("tsu")
    rule = tsu.split()
    assert rule is not None
    assert tsu.subset("P99T01C01", rule) is None
    assert tsu.subset("monday", rule) is None


def test_an_unknown_split_lists_the_choices() -> None:
    with pytest.raises(UsageError, match="available: cross-subject, cross-view"):
        load_dataset("tsu").split("random")


@pytest.mark.parametrize("ids", [[], ["monday", "tuesday"], ["7UPGT", "monday", "P02T01C06"]])
def test_other_ids_are_no_datasets(ids: list[str]) -> None:
    assert recognise(ids) is None


# That the numbers in the published files mean the classes of these names


def test_multithumos_ids_have_as_many_actions_as_the_files_of_their_names(shared: Path) -> None:
    dataset = load_dataset("multithumos")
    counts = counts_by_class(dataset, published(shared, "multithumos"))
    assert {name: counts[name] for name in MULTITHUMOS} == MULTITHUMOS


def counts_by_class(dataset: Dataset, entries: dict[str, Any]) -> Counter[str]:
    return Counter(dataset.classes[a[0]] for e in entries.values() for a in e["actions"])


def test_tsu_ids_behave_as_their_names_say(shared: Path) -> None:
    dataset, entries = load_dataset("tsu"), published(shared, "tsu")
    first = Counter(
        dataset.classes[min(e["actions"], key=lambda a: a[1])[0]]
        for e in entries.values()
        if e["actions"]
    )
    assert first.most_common(1)[0][0] == "Enter"
    lengths: dict[str, list[float]] = {name: [] for name in dataset.classes}
    for entry in entries.values():
        for label, start, end in entry["actions"]:
            lengths[dataset.classes[label]].append(end - start)
    frames = {name: median(values) for name, values in lengths.items()}
    # What takes minutes, and what takes a second or two.
    assert min(frames[n] for n in ("Read", "Breakfast", "Make_coffee", "Use_tablet")) > 1000
    assert max(frames[n] for n in ("Sit_down", "Get_up", "Enter", "Leave", "Use_glasses")) < 40
    # A part lies within its whole.
    for part, whole in (
        ("Make_coffee.Pour_water", "Make_coffee"),
        ("Make_coffee.Pour_grains", "Make_coffee"),
        ("Breakfast.Take_ham", "Breakfast"),
    ):
        assert inside(dataset, entries, part, whole) > 0.75


def inside(dataset: Dataset, entries: dict[str, Any], part: str, whole: str) -> float:
    """Share of the actions `part` that lie within an action `whole` of their video."""
    small, large = dataset.classes.index(part), dataset.classes.index(whole)
    hits = [
        any(a[0] == large and a[1] <= p[1] and p[2] <= a[2] for a in entry["actions"])
        for entry in entries.values()
        for p in entry["actions"]
        if p[0] == small
    ]
    return sum(hits) / len(hits)


# Each is a thing, and one that shares no letters with another.
THINGS = (
    "book", "laptop", "blanket", "pillow", "broom", "mirror", "sandwich", "box", "bag", "phone",
    "towel", "window", "refrigerator", "vacuum", "dish", "shoe", "medicine", "closet",
)  # fmt: skip


@pytest.mark.parametrize("thing", THINGS)
def test_charades_classes_of_one_thing_occur_together(shared: Path, thing: str) -> None:
    dataset, entries = load_dataset("charades"), published(shared, "charades")
    present = np.zeros((len(entries), len(dataset.classes)))
    for row, entry in zip(present, entries.values(), strict=True):
        row[[action[0] for action in entry["actions"]]] = 1
    together, alone = present.T @ present, present.sum(axis=0)
    more_than_by_chance = together / np.outer(alone, alone) * len(present)
    ids = [number for number, name in enumerate(dataset.classes) if thing in name.lower()]
    least = {
        shift: min(
            more_than_by_chance[(a + shift) % 157, (b + shift) % 157]
            for a, b in itertools.combinations(ids, 2)
        )
        for shift in (-1, 0, 1)
    }
    assert least[0] > 1.4
    assert least[0] > max(least[-1], least[1])  # and would not, if ids were off by one
