"""examples/demo.py from its data to its table, on a tiny model and a few steps; the real figures take minutes."""

import json
import sys

import pytest
from builders import failure_of, forget_accelerator, load_example, run_example, write_dataset
from PIL import Image

demo = load_example("demo")


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs the scripts that the demo starts here, with a small data set in place of the brain's."""

    def run(script, *flags):
        forget_accelerator()
        if script == "prepare_dataset.py":
            write_dataset(demo.Path(flags[1]), {"train": 20, "val": 3, "test": 3})
        else:
            run_example(load_example(script.removesuffix(".py")), *flags)

    monkeypatch.setattr(demo, "run", run)


def test_a_row_for_each_method_and_the_pictures(in_this_process, base, tmp_path, capsys):
    out = tmp_path / "demo"
    run_example(demo, "--output_dir", out, "--model_name_or_path", base, "--image_size", 32, "--max_train_steps", 4)
    table = (out / "table.md").read_text()
    assert capsys.readouterr().out.count(table.strip()) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == list(demo.METHODS)
    assert rows[0][3] == "0" and all(int(row[3].replace(",", "")) > 0 for row in rows[1:])
    for name, row in zip(list(demo.METHODS)[1:], rows[1:], strict=True):
        results = json.loads((out / name.replace(" ", "-").lower() / "all_results.json").read_text())
        assert results["train_steps"] == 4 and row[1] == f"{results['test_dice']:.4f}"
        assert results["lr_scheduler_type"] == "cosine"
    with Image.open(out / "samples.png") as samples:
        assert samples.width > samples.height > 500


def test_a_script_that_fails_ends_the_demo_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        demo.run("prepare_dataset.py", "brain-mri", str(tmp_path / "nowhere" / "below"), "more")
    assert stop.value.code == 2


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "mine").touch()
    line = failure_of(capsys, demo, "--output_dir", tmp_path)
    assert f"{tmp_path} exists already" in line and [file.name for file in tmp_path.iterdir()] == ["mine"]
