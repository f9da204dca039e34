"""A settings file means what the flags mean, lists too."""

from dataclasses import dataclass, field

import pytest

from peft_vlsm.segmentation.arguments import OneLineParser, option, parse_arguments
from peft_vlsm.segmentation.errors import InputError


@dataclass
class Arguments:
    prompt: list[str] = field(metadata={"help": "prompts"})
    rate: float = option(1.0, "a number")
    precision: str | None = option(None, "no, or 16 bits")
    report_to: str | None = option(None, "names with commas")
    shown: bool = option(True, "whether")


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


def test_values_are_what_the_fields_take(tmp_path):
    """YAML reads no as false, and users write lists where a flag takes commas."""
    (tmp_path / "s.yaml").write_text("prompt: [a]\nprecision: no\nreport_to: [wandb, trackio]\nshown: no\n")
    read = parse_arguments(Arguments, [str(tmp_path / "s.yaml")])
    assert read == Arguments(["a"], 1.0, "no", "wandb,trackio", False)


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--prompt; see"),
        (["--prompt", "a", "--rates", "2"], "unknown arguments: --rates 2; see"),
        (["--prompt", "a", "--rate", "x"], "--rate: invalid float value: 'x'; see"),
    ],
)
def test_a_wrong_flag_is_one_line(flags, message):
    with pytest.raises(InputError, match=message) as error:
        parse_arguments(Arguments, flags)
    assert "\n" not in str(error.value)


def test_other_parsers_say_it_in_one_line_too():
    parser = OneLineParser(prog="script.py")
    parser.add_subparsers(required=True, dest="name").add_parser("one").add_argument("out")
    with pytest.raises(InputError, match="out; see script.py one --help"):
        parser.parse_args(["one"])


def test_help_keeps_the_descriptions_lines_and_names_defaults(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(Arguments, ["--help"], description="Title.\n\n    a line\n    another line")
    out = capsys.readouterr().out
    assert "    a line\n    another line\n" in out and "a number (default: 1.0)" in out
