"""
Whatever is wrong with what a user gives, a script ends in one of three ways, which a table tells for each case.

refused: status 2, one line that names the file and what to do, and nothing on the disk is other than before, but for
    an empty output folder where the first batch showed it;
stopped: the same, but the run had begun: what was there before is there as it was (but for lines of the log that a
    resumed run measures again), and no results are;
handled: the run goes to its end, and says what it made of it.
"""

import importlib.util
import logging
import os
import pickle
import sys
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from bad_cases import (
    ADAPTER,
    CHECKPOINTED,
    FUNNY,
    PICKLE,
    SAFETENSORS,
    Case,
    Place,
    World,
    asked_for,
    checkpoint_weights,
    command,
    csv_table,
    data_case,
    drop,
    evaluate_flags,
    failing,
    finetune_flags,
    foreign_code,
    integers,
    late_damage,
    link_outside,
    misshape,
    named,
    nothing,
    of_base,
    own_file,
    pickle_among_adapters,
    pickle_beside,
    pickled,
    pickled_hub,
    predict_flags,
    repeated,
    resumed,
    rows_of,
    saved,
    settings_case,
    signed,
    small,
    spoilt_file,
    streamed,
    weights_case,
    wider,
)
from builders import EXAMPLES, forget_accelerator, load_example, run_example, write_dataset
from run_folders import write_run
from source_data import streams
from spoilers import SIZES, edit_json, evil_pickle, poison

from peft_vlsm.__main__ import main as command_line

BROKEN = {
    "zero bytes": "is not an image that Pillow reads, but an empty file",
    "cut off": "cannot be read as an image",
    "bomb": "pixels; crop or shrink it",
    "16 bits": "more than 8 bits a channel (mode I;16); save it as an 8-bit image",
    "animated PNG": "holds several pages or frames; save the one that counts",
}
FIRST = {
    "medvlsm": "train_0.png",
    "coco": "7.png",
    "imagefolder": "0.png",
    "parquet": "row 0, image",
    "webdataset": "row 0, jpg",
}
IMAGE_CASES = {
    **{
        f"{kind}: image, {how}": data_case(kind, FIRST[kind], said, image=how)
        for kind in SIZES
        for how, said in BROKEN.items()
    },
    "imagefolder: image, text": data_case("imagefolder", "0.png is not an image", "or is damaged", image="text"),
    "imagefolder: image, floats": data_case("imagefolder", "0.png has more than 8 bits", "(mode F)", image="floats"),
    "imagefolder: image, 32 bits": data_case("imagefolder", "0.png has more than 8 bits", "(mode I)", image="32 bits"),
    "imagefolder: image, GIF": data_case("imagefolder", "0.png holds several pages", image="animated GIF"),
    "imagefolder: image, TIFF": data_case("imagefolder", "0.png holds several pages", image="two pages"),
    "medvlsm: image gone": data_case("medvlsm", "train.json, row 0", "'train_0.png' does not exist", image=None),
    "coco: image gone": data_case("coco", "instances_train2017.json, image 7", "'7.png' does not exist", image=None),
    "imagefolder: mask gone": data_case("imagefolder", "metadata.jsonl, line 1", "'0_mask.png' does not", mask=None),
    "parquet: image gone": data_case("parquet", "row 0, image is empty; every row needs a picture", image=None),
    "webdataset: mask gone": data_case("webdataset", "0.tar or a shard beside it", "don't share the same", mask=None),
    **{
        f"{kind}: mask of 0 and 1": data_case(kind, "of this mask is 1; masks hold 0 and 255", mask="mask, 0 and 1")
        for kind in SIZES
        if kind != "coco"
    },
    "medvlsm: mask of classes": data_case(
        "medvlsm", "masks/train_0.png", "grey (150 most often)", mask="mask, classes"
    ),
    "medvlsm: mask of probabilities": data_case("medvlsm", "threshold it", mask="mask, probabilities"),
    "medvlsm: mask of a colour": data_case("medvlsm", "brightest pixel of this mask is 76", mask="mask, a colour"),
    "medvlsm: clear mask": data_case("medvlsm", "train_0.png: this mask has transparent pixels", mask="mask, clear"),
    "medvlsm: mask of 16 bits": data_case("medvlsm", "masks/train_0.png has more than 8 bits", mask="16 bits"),
    "medvlsm: mask of another size": data_case(
        "medvlsm", "is 41x36 but", "make them one size", mask="mask, another size"
    ),
    "parquet: mask of another size": data_case("parquet", "row 0, mask is 13x10 but", mask="mask, another size"),
    "medvlsm: image rotated, its mask not": data_case(
        "medvlsm", "train_0.png is 36x40 but its image", "make them one size", image="rotated", mask="mask, lying"
    ),
    "medvlsm: pixels of a later image": Case(late_damage, ("images/val_1.png cannot be read",), fate="stopped"),
    **{
        f"{kind}: images of other modes": Case(
            rows_of(kind, {place: {"image": how} for place, how in enumerate(("CMYK", "rotated", *more))}),
            ("results in",),
            fate="handled",
        )
        for kind in SIZES
        for more in [() if kind == "coco" else ("palette", "clear palette")]
    },
    "medvlsm: masks of other modes": Case(
        rows_of("medvlsm", dict(enumerate({"mask": f"mask, {how}"} for how in ("palette", "1 bit", "JPEG", "empty")))),
        ("results in",),
        fate="handled",
    ),
    "medvlsm: image and mask rotated": Case(
        rows_of("medvlsm", {0: {"image": "rotated", "mask": "mask, rotated"}, 1: {"image": "grey and alpha"}}),
        ("results in",),
        fate="handled",
    ),
}
ROW_CASES = {
    "medvlsm: empty prompt": data_case("medvlsm", "train.json, row 0", "empty prompt", "p1 is ' '", prompt=" "),
    "coco: empty phrase": data_case("coco", "instances_train2017.json, category 1: name must be a text", prompt=""),
    "imagefolder: empty prompt": data_case("imagefolder", "metadata.jsonl, line 1: prompt must be", prompt=""),
    "parquet: empty prompt": data_case("parquet", "row 0 (counted from 0): prompt must be a text", prompt=[""]),
    "webdataset: empty prompt": data_case("webdataset", "row 0 (counted from 0): txt must be a text", prompt=" "),
    "medvlsm: prompt is a number": data_case("medvlsm", "train.json, row 0", "not text: p1 is 7", prompt=7),
    "coco: phrase is a list": data_case("coco", "category 1: name must be a text", "['a']", prompt=["a"]),
    "imagefolder: prompt is null": data_case("imagefolder", "line 1: prompt must be", "it is None", prompt=None),
    "parquet: prompts are numbers": data_case("parquet", "row 0", "prompt must be a text", "it is 7", prompt=7),
    "medvlsm: half a character": data_case("medvlsm", "train.json, row 0", "not text", prompt="\ud800"),
    "medvlsm: path out": data_case(
        "medvlsm", "'../../x.png' leaves the data folder; give a path", image="../../x.png"
    ),
    "coco: absolute path": data_case("coco", "image 7: file_name '/etc/x' leaves the data folder", image="/etc/x"),
    "imagefolder: path out": data_case("imagefolder", "mask_file_name '../0.png' leaves the data", mask="../0.png"),
    "parquet: path in a cell": data_case(
        "parquet", "names the file '/etc/hostname'; shards must", image="/etc/hostname"
    ),
    "medvlsm: link out": Case(
        link_outside, ("'train_0.png' is a link that leaves the data folder", "copy the file in")
    ),
    "medvlsm: Unicode": Case(named("medvlsm", f"{FUNNY}.png"), ("results in",), fate="handled"),
    "coco: Unicode": Case(named("coco", f"{FUNNY}.png"), ("results in",), fate="handled"),
    "imagefolder: Unicode": Case(named("imagefolder", f"{FUNNY}.png"), ("results in",), fate="handled"),
    "imagefolder: rows repeat": Case(repeated, ("metadata.jsonl: 4 rows repeat another one",), fate="handled"),
    "parquet: rows repeat": Case(
        rows_of("parquet", {row: {"image": "CMYK", "prompt": ["a"]} for row in (1, 2, 3)}),
        ("2 rows repeat another one",),
        fate="handled",
    ),
    "CSV: rows repeat": Case(
        lambda place: csv_table(place, f"{FUNNY}.png,{FUNNY}", f"{FUNNY}.png,{FUNNY}"),
        ("passed over 1 rows of", "1 masks of 1 images"),
        "predict",
        "handled",
    ),
    "CSV: path out": Case(lambda place: csv_table(place, "../a.png,disc"), ("table.csv line 2", "outside"), "predict"),
    "CSV: empty prompt": Case(
        lambda place: csv_table(place, f"{FUNNY}.png, "), ("table.csv line 2", "empty"), "predict"
    ),
}

SOURCE_CASES = {
    "no such folder": Case(lambda place: finetune_flags(place, place.folder / "gone"), ("gone is not a folder",)),
    "medvlsm: no rows": Case(spoilt_file("medvlsm", "anns/train.json", b"[]"), ("train.json holds no rows; give it",)),
    "medvlsm: not UTF-8": Case(spoilt_file("medvlsm", "anns/val.json", b"\xff"), ("val.json is not valid JSON",)),
    "coco: cut off": Case(
        spoilt_file("coco", "annotations/instances_val2017.json", b'{"images": ['), ("val2017.json is not valid JSON",)
    ),
    "imagefolder: no metadata": Case(
        spoilt_file("imagefolder", "train/metadata.jsonl", None), ("train holds none of metadata.jsonl",)
    ),
    "parquet: text": Case(spoilt_file("parquet", "train-0.parquet", b"a,b"), ("train-0.parquet or a shard",)),
    "parquet: zero bytes": Case(spoilt_file("parquet", "train-0.parquet", b""), ("train-0.parquet or a shard",)),
    "webdataset: text": Case(spoilt_file("webdataset", "train/0.tar", b"a,b"), ("train/0.tar or a shard beside",)),
    "parquet, streamed: first image": Case(
        streamed("parquet", {0: {"image": "zero bytes"}}), ("row", "image", "is not an image"), fate="refused"
    ),
    "parquet, streamed: a later image": Case(
        streamed("parquet", {2: {"image": "cut off"}}), ("image cannot be read as an image",), fate="stopped"
    ),
    "webdataset, streamed: a later mask": Case(
        streamed("webdataset", {3: {"mask": "mask, 0 and 1"}}), ("masks hold 0 and 255",), fate="stopped"
    ),
    "predict.py: bomb": Case(asked_for("a.png", "bomb"), ("a.png cannot be read", "crop or shrink it"), "predict"),
    "predict.py: animated": Case(asked_for("a.gif", "animated GIF"), ("a.gif holds several pages",), "predict"),
    "predict.py: 16 bits": Case(asked_for("a.png", "16 bits"), ("a.png has more than 8 bits",), "predict"),
    "predict.py: zero bytes": Case(asked_for("a.jpg", "zero bytes"), ("a.jpg is not", "an empty file"), "predict"),
    "predict.py: Unicode": Case(asked_for(f"{FUNNY}.png", "CMYK"), ("1 masks of 1",), "predict", "handled"),
    "predict.py: empty prompt": Case(asked_for("a.png", "CMYK", " "), ("--prompt ' ' is empty",), "predict"),
}


MISFIT = "1 weights have no counterpart"
MODEL_CASES = {
    "dense: tensor too many": weights_case(
        "dense", lambda weights: weights.update(more=torch.ones(2)), MISFIT, "more (the"
    ),
    "dense: tensor missing": weights_case("dense", drop("fc1.weight"), MISFIT, "the file lacks it", "copy the file"),
    "dense: decoder's tensor missing": weights_case("dense", drop("decoder.film_add.bias"), MISFIT, "film_add.bias"),
    "lora: tensor missing": weights_case("lora", drop("lora_B"), MISFIT, "lora_B.weight (the file lacks it)"),
    "lora: tensor misshapen": weights_case(
        "lora", misshape("lora_A"), "size mismatch", "lora_A.weight is [3], and [2, "
    ),
    "dense: tensor misshapen": weights_case(
        "dense", misshape("fc1.weight"), "size mismatch", "fc1.weight is [3], and "
    ),
    "dense: integers": weights_case("dense", integers("fc1.weight"), "fc1.weight is torch.int32, and torch.float32"),
    "decoder: tensor missing": weights_case("decoder", drop("film_add.bias"), "decoder.safetensors does not hold"),
    "dense: not a number": weights_case(
        "dense", poison("fc2.bias", float("nan")), "fc2.bias are not finite; take an e"
    ),
    "lora: infinite": weights_case("lora", poison("lora_B", float("inf")), "lora_B.weight are not finite"),
    "shallow: minus infinite": weights_case("shallow", poison("fc1", float("-inf")), "are not finite"),
    "decoder: not a number": weights_case(
        "decoder", poison("film_mul.bias", float("nan")), "film_mul.bias are not finite"
    ),
    "full: not a number": weights_case("full", poison("visual_proj", float("nan")), "full cannot", "are not finite"),
    "dense: pickle alone": Case(saved("dense", pickled(PICKLE)), (f"{SAFETENSORS} is not there", "save"), "predict"),
    "dense: pickle by a new name": Case(
        saved("dense", pickled(SAFETENSORS)), (f"{SAFETENSORS} is a pickle, which is never loaded",), "predict"
    ),
    "dense: torch file by a new name": Case(
        saved("dense", pickled(SAFETENSORS, True)), (f"{SAFETENSORS} is a pickle, which is never",), "predict"
    ),
    "dense: pickle beside": Case(saved("dense", pickle_beside), ("1 masks of 1 images",), "predict", "handled"),
    "decoder: pickle": Case(saved("decoder", pickled("decoder.safetensors")), ("is a pickle",), "predict"),
    "full: pickle alone": Case(saved("full", pickled("pytorch_model.bin")), ("full", "safetensors"), "predict"),
    "base: pickle alone": Case(of_base(pickled("pytorch_model.bin")), ("base cannot be", "model.safetensors")),
    "Hub: pickle alone": Case(
        lambda place: predict_flags(place, "me/old"),
        ("me/old cannot be loaded", f"no {SAFETENSORS} of it", "save the model again"),
        "predict",
        meanwhile=pickled_hub,
    ),
    "evaluate.py: a pickle among adapters": Case(pickle_among_adapters, (f"{SAFETENSORS} is not there",), "evaluate"),
    "push: pickle": Case(
        command("dense", pickled(SAFETENSORS), "push", "me/repo"), ("no safetensors file", "copy"), "peft_vlsm"
    ),
    "push: pickle alone": Case(
        command("lora", pickled(PICKLE), "push", "me/repo"), (SAFETENSORS, "copy it"), "peft_vlsm"
    ),
    "inspect: pickle": Case(
        command("dense", pickled(SAFETENSORS), "inspect"), ("no safetensors file", "save it again"), "peft_vlsm"
    ),
    "inspect: unknown type": Case(
        command("dense", lambda folder, place: edit_json(folder / ADAPTER, peft_type="NEW"), "inspect"),
        ("has the peft_type NEW; allowed",),
        "peft_vlsm",
    ),
    "dense: unknown type": settings_case("dense", "adapter_config.json has the peft_type 'NEW'", peft_type="NEW"),
    "dense: no type": settings_case("dense", "has the peft_type None", peft_type=None),
    "lora: type of prompts": settings_case("lora", "'PROMPT_TUNING', which is no adapter", peft_type="PROMPT_TUNING"),
    "dense: wrong setting": settings_case("dense", "wrong setting: adapter_dim is -1", adapter_dim=-1),
    "dense: newer, unknown fields": settings_case(
        "dense", "of peft_vlsm 9.1", "know (gate)", "pip install -U", plugin_version="9.1", gate=True
    ),
    "dense: newer, known fields": settings_case(
        "dense", "is of peft_vlsm 9.1, and this is", "1 masks of 1", fate="handled", plugin_version="9.1"
    ),
    "dense: unknown fields": settings_case("dense", "unknown here and do nothing: gate", fate="handled", gate=True),
    "lora: unknown fields": settings_case("lora", "unknown here and do nothing: gate", fate="handled", gate=True),
    "dense: no version": settings_case("dense", "'new' is no version of peft_vlsm", plugin_version="new", gate=1),
    "dense: base gone": settings_case("dense", "the model /gone cannot be loaded", base_model_name_or_path="/gone"),
    "dense: settings cut off": Case(
        saved("dense", lambda folder, place: (folder / ADAPTER).write_text("{")),
        (f"{ADAPTER} is not valid JSON", "copy it again"),
        "predict",
    ),
    "dense: settings are a list": Case(
        saved("dense", lambda folder, place: (folder / ADAPTER).write_text("[]")), ("the peft_type None",), "predict"
    ),
    "dense: a wider base": Case(
        of_base(wider, "predict"), ("dense does not fit", "size mismatch", "--model_name_or_path"), "predict"
    ),
    "base: another family": Case(
        of_base(lambda folder, place: (folder / "config.json").write_text('{"model_type": "clip"}')),
        ("base is of the kind clip", "this works on clipseg"),
    ),
    "base: an adapter": Case(lambda place: finetune_flags(place, base=place.copy("lora")), ("lora cannot be loaded",)),
    **{
        f"base: broken {name}": Case(
            of_base(lambda folder, place, name=name: (folder / name).write_text("{")), ("base cannot be loaded",)
        )
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    },
    "base: tokenizer of a wrong form": Case(
        of_base(lambda folder, place: edit_json(folder / "tokenizer.json", model={}, decoder=3)),
        ("base cannot be loaded", "tokenizer.json is broken", "copy it again"),
    ),
    "base: sizes that are no numbers": Case(
        of_base(lambda folder, place: edit_json(folder / "config.json", text_config={"hidden_size": "x"})),
        ("base cannot be loaded",),
    ),
    "dense: image size of no sides": Case(
        saved("dense", lambda folder, place: edit_json(folder / "preprocessor_config.json", size=[])),
        ("dense cannot be loaded",),
        "predict",
    ),
    "dense: broken preprocessor_config.json": Case(
        saved("dense", lambda folder, place: (folder / "preprocessor_config.json").write_text("{")),
        ("dense cannot be loaded", "preprocessor_config.json"),
        "predict",
    ),
    "base: with code": Case(of_base(foreign_code), ("base cannot be loaded",)),
}

EVIL = signed("optimizer.bin", lambda file, place: evil_pickle(place.marker))
OUTPUT_CASES = {
    "finetune.py: output is a file": Case(
        lambda place: finetune_flags(place, out=own_file(place)), ("file is a file; name",)
    ),
    "finetune.py: output below a file": Case(
        lambda place: finetune_flags(place, out=own_file(place) / "out"), ("--output_dir", "file/out cannot be made")
    ),
    "finetune.py: read-only": Case(
        lambda place: finetune_flags(place, out=Path("/proc/out")), ("--output_dir /proc/out cannot be made",)
    ),
    "finetune.py: results are there": Case(
        lambda place: finetune_flags(place, out=place.copy("dense")), ("dense is not empty; name another",)
    ),
    "finetune.py: disk full, weights": Case(
        finetune_flags, ("out cannot be written (--output_dir)", "free space"), fate="stopped", meanwhile=small(4000)
    ),
    "finetune.py: disk full, renaming": Case(
        finetune_flags,
        ("out cannot be written (--output_dir)", "No space left", "free space"),
        fate="stopped",
        meanwhile=failing(os, "replace", ".writing"),
    ),
    "finetune.py: disk full, log": Case(
        finetune_flags,
        ("log.jsonl", "No space left", "free space"),
        fate="stopped",
        meanwhile=failing(Path, "open", "log"),
    ),
    "finetune.py: disk full, checkpoint": Case(
        resumed(nothing, "out/step_1"),
        ("the checkpoint", "step_2 cannot be", "free"),
        fate="stopped",
        meanwhile=small(9000),
    ),
    "finetune.py: disk full, checkpoint's name": Case(
        resumed(nothing, "out/step_1"),
        ("the checkpoint", "step_2 cannot be written", "No space left"),
        fate="stopped",
        meanwhile=failing(os, "replace", ".step_2.partial"),
    ),
    "predict.py: output below a file": Case(
        lambda place: [*predict_flags(place, place.world.runs["dense"]), "--output", own_file(place) / "out"],
        ("file/out was not written", "name another folder"),
        "predict",
    ),
    "predict.py: disk full": Case(
        lambda place: predict_flags(place, place.world.runs["dense"]),
        ("out was not written", "mend that"),
        "predict",
        meanwhile=small(100),
    ),
    "evaluate.py: read-only": Case(
        lambda place: [*evaluate_flags(place, [place.world.runs["dense"]])[:-1], "/proc/out"],
        ("/proc/out was not written", "name another folder"),
        "evaluate",
    ),
    "evaluate.py: disk full": Case(
        lambda place: evaluate_flags(place, [place.world.runs["dense"]]),
        ("out was not written",),
        "evaluate",
        meanwhile=small(500),
    ),
    "evaluate.py: broken image": Case(
        lambda place: evaluate_flags(place, [place.world.runs["dense"]], late_damage(place)[1]),
        ("val_1.png cannot be read",),
        "evaluate",
    ),
    "resume: no such checkpoint": Case(resumed(nothing, "step_9"), ("step_9 is no whole checkpoint", "or latest")),
    "resume: damaged": Case(
        resumed(lambda out, place: (out / "step_2" / SAFETENSORS).write_bytes(b"\1"), "out/step_2"),
        ("step_2 is damaged: adapter_model.safetensors", "name another"),
    ),
    "resume: half-written": Case(
        resumed(lambda out, place: (out / "step_2" / "files.json").unlink()),
        ("warning: passing over the checkpoint", "step_2", "going on from", "step_1, step 1"),
        fate="handled",
    ),
    "resume: none yet": Case(
        lambda place: [*finetune_flags(place), "--resume_from_checkpoint", "latest"],
        ("there is no checkpoint in", "starting from the beginning"),
        fate="handled",
    ),
    "resume: another base": Case(
        lambda place: [*resumed(nothing)(place), "--model_name_or_path", place.copy("base")],
        ("is of a run with model_name_or_path", "resume with the same settings"),
    ),
    "resume: another method": Case(
        resumed(nothing, "latest", "--method", "lora"), ("is of a run with method dense, and this one has lora",)
    ),
    "resume: pickle": Case(resumed(EVIL), ("step_2 cannot be loaded",)),
    "resume: not finite": Case(
        resumed(checkpoint_weights(poison("fc1", float("nan")))), ("step_2 cannot be loaded", "are not finite")
    ),
    "resume: misshapen": Case(
        resumed(checkpoint_weights(misshape("fc1.weight"))), ("step_2 cannot be loaded", "size mismatch")
    ),
    "resume: unknown progress": Case(
        resumed(signed("progress.json", lambda file, place: b'{"progress": {"pace": 1}, "settings": {}}')),
        ("step_2 cannot be loaded", "pace"),
    ),
}
CASES = {**IMAGE_CASES, **ROW_CASES, **SOURCE_CASES, **MODEL_CASES, **OUTPUT_CASES}


@pytest.fixture(scope="module")
def scripts():
    """evaluate.py under another name than the library's."""
    spec = importlib.util.spec_from_file_location("evaluate_script", EXAMPLES / "evaluate.py")
    assert spec is not None and spec.loader is not None
    evaluate = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = evaluate
    spec.loader.exec_module(evaluate)
    modules = {"finetune": load_example("finetune"), "predict": load_example("predict"), "evaluate": evaluate}
    return {name: partial(run_example, module) for name, module in modules.items()} | {
        "peft_vlsm": lambda *flags: command_line([str(flag) for flag in flags])
    }


@pytest.fixture(scope="module")
def world(base, scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    data = write_dataset(folder / "data", {"train": 4, "val": 2, "test": 1})
    kinds = ("dense", "shallow", "lora", "decoder", "full")
    runs = {kind: write_run(folder / kind, base, kind) for kind in kinds} | {"checkpoints": folder / "checkpoints"}
    shared = World(base, data, runs)
    forget_accelerator()
    flags = finetune_flags(Place(shared, folder), out=runs["checkpoints"])[:6]
    scripts["finetune"](*flags, *CHECKPOINTED, 2)
    (runs["checkpoints"] / "all_results.json").unlink()
    return shared


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """datasets keeps what it has prepared; bars of tables this small are noise."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def _files(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[streams] * ("streamed" in name)) for name, case in CASES.items()]
)
def test_bad_input(case, scripts, world, tmp_path, capsys, caplog):
    place = Place(world, tmp_path)
    flags = case.flags(place)
    forget_accelerator()
    meanwhile = case.meanwhile(place)
    before, shared = _files(tmp_path), _files(world.base.parent) | _files(world.data.parent)
    with meanwhile, caplog.at_level(logging.WARNING, "peft_vlsm"):
        if case.fate == "handled":
            scripts[case.script](*flags)
        else:
            with pytest.raises(SystemExit) as exit_:
                scripts[case.script](*flags)
            assert exit_.value.code == 2
    told, after = capsys.readouterr(), _files(tmp_path)
    assert not place.marker.exists() and "Traceback" not in told.err
    assert shared == _files(world.base.parent) | _files(world.data.parent)
    if case.fate == "handled":
        heard = " ".join((told.out + told.err + caplog.text).split())
        assert "error: " not in heard and [words for words in case.said if words not in heard] == []
        assert (place.out / ("all_results.json" if case.script == "finetune" else "results.csv")).is_file()
        return
    # Bars stand above the line where work had begun.
    lines = [line for line in told.err.splitlines() if line.strip() and "it/s" not in line and "|" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert [words for words in case.said if words not in lines[0]] == [], lines[0]
    if case.fate == "refused":
        made = after.keys() - before.keys()
        assert {path: after[path] for path in after.keys() - made} == before and made <= {place.out}
    else:
        before.pop(place.out / "log.jsonl", None)
        assert before.items() <= after.items() and not (place.out / "all_results.json").exists()


def test_the_pickles_of_these_cases_do_what_they_say(tmp_path):
    """Else no case could tell whether one was loaded."""
    pickle.loads(evil_pickle(tmp_path / "made"))
    assert (tmp_path / "made").is_dir()
