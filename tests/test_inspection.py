"""`python -m peft_vlsm inspect` counts what `get_peft_model` gives, loads no weights, and refuses in one line."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from models import CONFIGS, FAMILIES, tiny_clipseg
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from peft_vlsm.__main__ import main
from peft_vlsm.tuners.inspection import inspect_adapter, inspect_model

BY_NAME = {family.name: family for family in FAMILIES}
# Every family with all the letters that a method has there, and one subset of them.
CASES = [
    *(
        (family.name, method, "".join(max(variants, key=len)))
        for family in FAMILIES
        for method, variants in family.variants.items()
    ),
    ("clipseg", "dense", "VC"),
    ("clipseg", "shallow", "L"),
    ("sam3", "dense", "L"),
    ("siglip", "dense", "V"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Gives a family's tiny model, saved once."""
    root, saved = tmp_path_factory.mktemp("models"), {}

    def folder(name):
        if name not in saved:
            BY_NAME[name].build().save_pretrained(root / name)
            saved[name] = root / name
        return saved[name]

    return folder


@pytest.fixture
def adapter(tmp_path):
    """A saved Dense adapter on CLIPSeg, with its decoder."""
    config = CONFIGS["dense"](variant="VC", adapter_dim=4, modules_to_save=["decoder"])
    return save(config, tmp_path / "adapter")


def save(config, folder):
    model = get_peft_model(tiny_clipseg(), config)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def refusal(capsys, *argv):
    """The one line that a refused command prints."""
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", *map(str, argv)])
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and not printed.out
    assert re.fullmatch(r"error: [^\n]+\n", printed.err), printed.err
    return printed.err


def edit(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("layers", ["paper", "all"])
@pytest.mark.parametrize(("name", "method", "variant"), CASES)
def test_the_counts_are_those_of_a_real_adapted_model(folders, name, method, variant, layers):
    report = inspect_model(str(folders(name)), method, variant, layers, adapter_dim=3)
    config = CONFIGS[method](variant=variant, layers=layers, adapter_dim=3)
    real = get_peft_model(BY_NAME[name].build(), config)
    assert (report.trainable, report.total) == real.get_nb_trainable_parameters()
    assert report.name == type(real.get_base_model()).__name__
    chosen = [place for places in config.resolved_modules.values() for place in places]
    assert [place.module for place in report.places if place.adapted] == chosen
    assert sum(place.parameters for place in report.places if place.adapted) == report.trainable


@pytest.mark.parametrize(("name", "method"), [(f.name, method) for f in FAMILIES for method in f.variants])
def test_every_letter_that_can_be_is_the_default(folders, name, method):
    report = inspect_model(str(folders(name)), method)
    letters = "".join(max(BY_NAME[name].variants[method], key=len))
    assert report.config.variant == letters
    assert report.config.adapter_dim == {"dense": 64, "shallow": 512}[method]
    assert {place.letter for place in report.places} == set(letters)
    assert set(report.unavailable) == set("VLC") - set(letters)


def test_a_row_has_the_shape_and_the_size_of_its_bottleneck(folders):
    report = inspect_model(str(folders("clipseg")), adapter_dim=5)
    places = {place.module: place for place in report.places}
    vision = places["clip.vision_model.encoder.layers.0.mlp.fc2"]
    assert (vision.hidden_size, vision.width, vision.parameters) == (32, 5, 2 * 32 * 5 + 32 + 5)
    conditional = places["clip.text_projection"]
    assert (conditional.hidden_size, conditional.width, conditional.parameters) == (24, 256, 2 * 24 * 256 + 24 + 256)


def test_clipseg_layers_that_reach_no_mask_get_no_adapter(folders, capsys):
    # extract_layers are 1 and 3: "paper" takes three layers, four reach the mask, and there are six.
    for layers, adapted in (("paper", 3), ("all", 4)):
        main(["inspect", str(folders("clipseg")), "--layers", layers])
        rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("V ")]
        assert len(rows) == 12
        for row in rows:
            index = int(row[1].split(".")[4])
            assert row[-2:] == ["yes" if index < 4 else "no", "yes" if index < adapted else "no"]
            assert (row[-3] == "-") == (index >= 4)


def test_the_table_ends_with_the_sums(folders, capsys):
    main(["inspect", str(folders("siglip")), "--variant", "V", "--adapter_dim", "4"])
    lines = capsys.readouterr().out.splitlines()
    trainable, total = get_peft_model(
        BY_NAME["siglip"].build(), CONFIGS["dense"](variant="V", adapter_dim=4)
    ).get_nb_trainable_parameters()
    assert lines[0] == "SiglipModel with DenseAdapterConfig(variant='V', layers='paper', adapter_dim=4)"
    assert lines[-3].startswith("no C: variant has 'C', which SiglipModel cannot have: there is no text projection")
    assert lines[-2] == f"parameters of the model: {total - trainable:,}, with the adapters {total:,}"
    assert lines[-1] == f"trainable parameters: {trainable:,} ({trainable / total:.2%})"


def test_no_weights_are_needed(folders, tmp_path):
    shutil.copy(folders("clip") / "config.json", tmp_path)
    report, expected = inspect_model(str(tmp_path)), inspect_model(str(folders("clip")))
    assert (report.places, report.trainable, report.total) == (expected.places, expected.trainable, expected.total)


def test_the_detector_of_a_sam3_video_checkpoint_is_inspected(folders, tmp_path):
    detector = json.loads((folders("sam3") / "config.json").read_text())
    from transformers.models.sam3_video.configuration_sam3_video import Sam3VideoConfig

    Sam3VideoConfig(detector_config=detector).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam3_video"
    report, expected = inspect_model(str(tmp_path)), inspect_model(str(folders("sam3")))
    assert (report.name, report.places, report.total) == ("Sam3Model", expected.places, expected.total)


def test_a_letter_that_the_family_lacks_is_refused_with_the_reason(folders, capsys):
    line = refusal(capsys, folders("sam3"), "--method", "shallow", "--variant", "VL")
    assert "variant has 'L', which Shallow adapters cannot have on Sam3Model: its conditional embedding is" in line
    assert "SiglipModel cannot have: there is no text projection" in refusal(
        capsys, folders("siglip"), "--variant", "C"
    )
    assert "Shallow adapters" in refusal(capsys, folders("siglip"), "--method", "shallow", "--variant", "V")
    assert "SiglipModel" in refusal(capsys, folders("siglip"), "--method", "shallow")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--variant", "VX"], "variant is 'VX'; allowed: a non-empty set of the letters"),
        (["--variant", ""], "variant is ''; allowed"),
        (["--adapter_dim", "0"], "adapter_dim is 0; allowed: a positive whole number"),
        (["--adapter_dim", "x"], "--adapter_dim: invalid int value: 'x'"),
        (["--layers", "some"], "--layers: invalid choice: 'some'"),
        (["--method", "lora"], "--method: invalid choice: 'lora'"),
        (["--adapter-dim", "4"], "unrecognized arguments: --adapter-dim 4"),
        (["--var", "V"], "unrecognized arguments: --var V"),
    ],
)
def test_a_wrong_setting_is_one_line(folders, capsys, argv, message):
    assert message in refusal(capsys, folders("clip"), *argv)


def test_an_unknown_family_is_answered_with_the_families(folders, tmp_path, capsys):
    shutil.copy(folders("clip") / "config.json", tmp_path)
    edit(tmp_path / "config.json", model_type="bert")
    line = refusal(capsys, tmp_path)
    assert f"{tmp_path}/config.json has the model_type 'bert'; allowed: clipseg, sam3, " in line
    assert all(name in line for name in BY_NAME)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json holds no JSON object"),
        ("3", "config.json holds no JSON object"),
        ("{}", "config.json has the model_type None"),
        ('{"model_type": "clip", "text_config": {"hidden_size": "wide"}}', "config.json describes no model"),
        ('{"model_type": "clip", "text_config": {"num_attention_heads": 0}}', "config.json describes no model"),
        ('{"model_type": "clip", "text_config": 3}', "config.json describes no model"),
    ],
)
def test_a_config_of_no_model_is_named(tmp_path, capsys, content, message):
    (tmp_path / "config.json").write_text(content)
    assert f"{tmp_path}/{message}" in refusal(capsys, tmp_path)


def test_a_path_that_holds_nothing_is_named(folders, tmp_path, capsys):
    assert f"{tmp_path} has neither config.json nor adapter_config.json" in refusal(capsys, tmp_path)
    assert f"{tmp_path}/none does not exist" in refusal(capsys, tmp_path / "none")
    config = folders("clip") / "config.json"
    assert f"{config} is a file; name the folder" in refusal(capsys, config)
    assert "File name too long" in refusal(capsys, "x" * 5000)


def test_an_adapter_is_told_without_its_base_model(adapter, capsys):
    edit(adapter / "adapter_config.json", base_model_name_or_path="gone/away")
    weights = load_file(adapter / "adapter_model.safetensors")
    size = (adapter / "adapter_model.safetensors").stat().st_size
    main(["inspect", str(adapter)])
    lines = capsys.readouterr().out.splitlines()
    facts = dict(line.split(":", 1) for line in lines if not line.startswith(" "))
    facts = {name: value.strip() for name, value in facts.items()}
    assert facts.pop("plugin_version")
    assert facts == {
        "base model": "gone/away",
        "peft_type": "VLSM_DENSE_ADAPTER",
        "variant": "VC",
        "widths": "adapter_dim 4, cond_adapter_dim 256",
        "layers": "paper",
        "weights": f"{size:,} bytes ({size / 1024:.1f} KiB)",
        "tensors": f"{len(weights)}, with {sum(map(torch.numel, weights.values())):,} parameters",
        "modules_to_save": "decoder",
        "modules": "7",
    }
    places = json.loads((adapter / "adapter_config.json").read_text())["resolved_modules"]
    assert [line.split() for line in lines if line.startswith(" ")] == [
        [letter, place] for letter in "VC" for place in places[letter]
    ]


def test_target_modules_stand_instead_of_a_variant(tmp_path, capsys):
    config = CONFIGS["shallow"](target_modules=["fc2", "fc1"], exclude_modules=r"decoder\..*", reduction_factor=4)
    save(config, tmp_path / "out")
    main(["inspect", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "target_modules:  fc1, fc2\n" in out and "widths:          reduction_factor 4\n" in out
    assert "variant" not in out and "adapter_dim" not in out and "modules_to_save" not in out
    assert "  targets  clip.text_model.encoder.layers.0.mlp.fc1\n" in out


def test_an_adapter_that_records_no_modules_or_has_newer_fields_is_told(adapter, capsys):
    edit(adapter / "adapter_config.json", resolved_modules=None, a_newer_field=1)
    main(["inspect", str(adapter)])
    out = capsys.readouterr().out
    assert "unknown fields:  a_newer_field\n" in out and "modules:         not recorded\n" in out


def test_settings_are_refused_beside_an_adapter(adapter, capsys):
    assert f"--layers is for models, and {adapter} is an adapter" in refusal(capsys, adapter, "--layers", "all")


def test_an_adapter_of_another_type_is_refused(tmp_path, capsys):
    save(LoraConfig(target_modules=["fc2"]), tmp_path / "lora")
    line = refusal(capsys, tmp_path / "lora")
    assert "lora/adapter_config.json has the peft_type LORA; allowed: VLSM_DENSE_ADAPTER, VLSM_SHALLOW" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": None}, "has the peft_type None"),
        ({"peft_type": ["x"]}, "has the peft_type"),
        ({"adapter_dim": "wide"}, "has a wrong setting: adapter_dim is 'wide'"),
        ({"activation": ["relu"]}, "has a wrong setting"),
        ({"resolved_modules": {"V": "decoder"}}, "has a wrong resolved_modules"),
        ({"resolved_modules": ["decoder"]}, "has a wrong resolved_modules"),
    ],
)
def test_a_wrong_adapter_config_is_named(adapter, capsys, changes, message):
    edit(adapter / "adapter_config.json", **changes)
    assert f"{adapter}/adapter_config.json {message}" in refusal(capsys, adapter)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_corrupt_adapter_config_is_named(adapter, capsys, content):
    (adapter / "adapter_config.json").write_bytes(content)
    assert f"{adapter}/adapter_config.json holds no JSON object" in refusal(capsys, adapter)


@pytest.mark.parametrize("kept", [0, 4, 100, -1, None])
def test_a_corrupt_or_missing_weight_file_is_named(adapter, capsys, kept):
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if kept is not None:
        weights.write_bytes(content[:kept])
    line = refusal(capsys, adapter)
    assert f"{weights} is no safetensors file" in line and "copy it or save it again" in line


def test_a_missing_adapter_config_is_named(adapter, capsys):
    (adapter / "adapter_config.json").unlink()
    assert f"{adapter} has neither config.json nor adapter_config.json" in refusal(capsys, adapter)


def test_scalars_and_empty_files_are_counted(adapter):
    save_file({"a": torch.ones(()), "b": torch.ones(2, 3)}, adapter / "adapter_model.safetensors")
    report = inspect_adapter(adapter)
    assert (report.tensors, report.parameters) == (2, 7)
    save_file({}, adapter / "adapter_model.safetensors")
    assert (inspect_adapter(adapter).tensors, inspect_adapter(adapter).parameters) == (0, 0)


def test_the_command_runs_as_a_module(folders):
    command = [sys.executable, "-m", "peft_vlsm", "inspect", str(folders("clipseg"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("CLIPSegForImageSegmentation with ") and "trainable parameters: " in done.stdout
    # Other packages may say things of their own while they are imported.
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr, done.stderr
