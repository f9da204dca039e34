"""A settings file means what the flags mean, lists too."""

from dataclasses import dataclass, field

import pytest

from peft_vlsm.segmentation.arguments import parse_arguments
from peft_vlsm.segmentation.errors import InputError


@dataclass
class Arguments:
    prompt: list[str] = field(metadata={"help": "prompts"})
    rate: float = field(default=1.0, metadata={"help": "a number"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.yaml", "prompt: [grey matter, white matter]\nrate: 1e-3\n"),
        ("s.yml", "prompt:\n- grey matter\n- white matter\nrate: 0.001\n"),
        ("s.json", '{"prompt": ["grey matter", "white matter"], "rate": 0.001}'),
    ],
)
def test_a_file_gives_what_flags_give(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    flags = ["--prompt", "grey matter", "white matter", "--rate", "1e-3"]
    assert parse_arguments(Arguments, [str(tmp_path / name)]) == parse_arguments(Arguments, flags)
    assert parse_arguments(Arguments, flags) == Arguments(["grey matter", "white matter"], 0.001)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rate: x\nprompt: [a]", "rate"),
        ("other: 1", "unknown keys: other"),
        ("- 1", "must hold flags"),
        ("a: [", "YAML"),
    ],
)
def test_a_broken_file_is_named(content, message, tmp_path):
    (tmp_path / "s.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        parse_arguments(Arguments, [str(tmp_path / "s.yaml")])
