"""Which modules a configuration names."""

import pytest
from models import CONFIGS

from peft_vlsm.tuners.targets import is_excluded, is_target, lies_in, wrapped_modules

NAME = "model.layers.3.mlp.fc2"
ROWS = [
    ({"target_modules": ["fc2"]}, True),
    ({"target_modules": ["mlp.fc2"]}, True),
    ({"target_modules": ["c2"]}, False),
    ({"target_modules": r".*fc\d"}, True),
    ({"target_modules": r"fc\d"}, False),
    ({"target_modules": ["fc2"], "exclude_modules": ["mlp.fc2"]}, False),
    ({"target_modules": ["fc2"], "exclude_modules": r".*\.2\..*"}, True),
    ({"target_modules": ["fc2"], "modules_to_save": ["mlp"]}, False),
    ({"target_modules": ["fc2"], "layers_to_transform": 3}, True),
    ({"target_modules": ["fc2"], "layers_to_transform": [2, 4]}, False),
    ({"target_modules": r".*fc2", "layers_to_transform": [2, 4]}, False),
    ({"target_modules": ["fc2"], "layers_to_transform": [3], "layers_pattern": "layers"}, True),
    ({"target_modules": ["fc2"], "layers_to_transform": [3], "layers_pattern": ["h", "layers"]}, True),
    ({"target_modules": ["fc2"], "layers_to_transform": [3], "layers_pattern": "blocks"}, False),
    ({"target_modules": [NAME], "layers_to_transform": [0]}, True),
]


@pytest.mark.parametrize(("fields", "chosen"), ROWS, ids=[str(row[0]) for row in ROWS])
def test_target_modules(fields, chosen):
    assert bool(is_target(CONFIGS["dense"](**fields), NAME)) == chosen


def test_an_index_at_the_end_of_a_name_counts():
    config = CONFIGS["shallow"](target_modules=r"decoder\.reduces\.\d", layers_to_transform=[1])
    assert [i for i in range(3) if is_target(config, f"decoder.reduces.{i}")] == [1]


@pytest.mark.parametrize(
    ("excluded", "expected"), [(None, False), (["fc2"], True), (["layers"], False), (r".*mlp.*", True), ("mlp", False)]
)
def test_exclusion(excluded, expected):
    assert is_excluded(CONFIGS["dense"](exclude_modules=excluded), NAME) == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [("mlp", True), ("model", True), ("lp", False), (NAME, True), ("layers.3", True), ("3", True)],
)
def test_lies_in(entry, expected):
    assert lies_in(NAME, entry) == expected


def test_places_are_gathered_by_wrapped_module():
    config = CONFIGS["shallow"](resolved_modules={"V": ["d@e.1", "d@e.3"], "L": ["p@t.1"], "C": ["p"]})
    assert wrapped_modules(config) == {"d": [("V", "d@e.1"), ("V", "d@e.3")], "p": [("L", "p@t.1"), ("C", "p")]}
