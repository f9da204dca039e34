"""A result folder appears whole or not at all, and nothing that a user has is overwritten."""

from pathlib import Path

import pytest

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.output_folder import write_beside


@pytest.mark.parametrize("prepare", [lambda out: None, Path.mkdir], ids=["new", "empty folder"])
@pytest.mark.parametrize("name", ["out", "missing/parent/out"])
def test_folder_takes_its_name_when_the_block_ends(tmp_path, prepare, name):
    out = tmp_path / name
    if out.parent.exists():
        prepare(out)
    with write_beside(out) as staging:
        (staging / "result").write_text("done")
        assert not out.exists() or not any(out.iterdir())
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "result").read_text() == "done"


@pytest.mark.parametrize("error", [InputError, RuntimeError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), write_beside(tmp_path / "out") as staging:
        (staging / "half").write_text("")
        raise error("midway")
    assert list(tmp_path.iterdir()) == []


def test_system_errors_become_input_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="out was not written"), write_beside(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")
    with pytest.raises(InputError, match="No space left"), write_beside(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("case", ["file", "folder with a file", "current folder"])
def test_what_exists_is_refused_and_kept(tmp_path, monkeypatch, case):
    out = tmp_path / "out"
    if case == "file":
        out.write_text("mine")
    else:
        out.mkdir()
    if case == "folder with a file":
        (out / "mine").write_text("mine")
    if case == "current folder":
        monkeypatch.chdir(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="out exists already"), write_beside(out):
        pytest.fail("the block must not run")
    assert sorted(tmp_path.rglob("*")) == before
