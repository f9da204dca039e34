"""Checkpoints of the paper's own code: every form that they come in, and every way that they do not fit."""

import pickle

import pytest
import torch
from models import CONFIGS, reference_case
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch.nn import functional as F

from peft_vlsm import load_vlsm_adapter_checkpoint


class Anything:
    """An object that weights_only=True must not unpickle."""


def case(tuner="dense", variant="VLC"):
    model, inputs, figures = reference_case("tiny", tuner, variant)
    base = {f"net.clipseg.{key}": value.clone() for key, value in model.state_dict().items()}
    adapter = {key.removeprefix("adapter."): value for key, value in figures.items() if key.startswith("adapter.")}
    width = adapter["v_attn_adapters.0.fc1.weight" if tuner == "dense" else "vision_extract_adapters.0.fc1.weight"]
    peft_model = get_peft_model(model, CONFIGS[tuner](variant=variant, adapter_dim=len(width)))
    inputs.pop("mask")
    return peft_model, inputs, figures["logits"], adapter, base


def with_net(adapter):
    return {f"net.{key}": value for key, value in adapter.items()}


def write(form, tmp_path, adapter, base):
    if form == "dict":
        return adapter
    if form == "dict with net.":
        return with_net(adapter)
    if form == "safetensors":
        save_file({key: value.contiguous() for key, value in adapter.items()}, tmp_path / "adapter.safetensors")
        return tmp_path / "adapter.safetensors"
    content = {**with_net(adapter), **base} if form != "ckpt with the adapter alone" else with_net(adapter)
    if form == "ckpt of old transformers":
        content["net.clipseg.clip.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "global_step": 9, "state_dict": content, "optimizer_states": [{"lr": 1e-3}]}, path)
    return str(path)


FORMS = [
    "dict",
    "dict with net.",
    "safetensors",
    "ckpt",
    "ckpt with the adapter alone",
    "ckpt of old transformers",
]


@pytest.mark.parametrize("tuner", CONFIGS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form(tuner, form, tmp_path):
    model, inputs, expected, adapter, base = case(tuner)
    load_vlsm_adapter_checkpoint(model, write(form, tmp_path, adapter, base))
    with torch.no_grad():
        logits = model(**inputs).logits
        torch.testing.assert_close(logits.unsqueeze(1), expected, atol=1e-5, rtol=0)
        model.save_pretrained(tmp_path / "ours")
        fresh = reference_case("tiny", tuner, "VLC")[0]
        loaded = PeftModel.from_pretrained(fresh, tmp_path / "ours")
        torch.testing.assert_close(loaded(**inputs).logits, logits, atol=0, rtol=0)


def missing(adapter, base):
    del adapter["cond_adapter.fc2.bias"]
    return adapter


def unexpected(adapter, base):
    return {**adapter, "v_attn_adapters.9.fc1.bias": torch.zeros(8)}


def misshapen(adapter, base):
    adapter["l_out_adapters.0.fc1.bias"] = torch.zeros(9)
    return adapter


def other_base(adapter, base):
    base["net.clipseg.decoder.film_mul.bias"] = base["net.clipseg.decoder.film_mul.bias"] + 1
    return {"state_dict": {**with_net(adapter), **base}}


def other_size(adapter, base):
    base["net.clipseg.decoder.film_mul.bias"] = torch.zeros(3)
    return {"state_dict": {**with_net(adapter), **base}}


def stranger(adapter, base):
    return {**adapter, "net.loss_fn.weight": torch.zeros(2)}


def both_prefixes(adapter, base):
    return {**adapter, "net.cond_adapter.fc2.bias": adapter["cond_adapter.fc2.bias"]}


def not_tensors(adapter, base):
    return {**adapter, "epoch": 3}


MISFITS = [
    (missing, r"missing keys \['cond_adapter.fc2.bias'\]"),
    (unexpected, r"unexpected keys \['v_attn_adapters.9.fc1.bias'\]"),
    (misshapen, r"l_out_adapters.0.fc1.bias of shape \(9,\), where this adapter has \(8,\)"),
    (other_base, "trained on another base: net.clipseg.decoder.film_mul.bias|trained on another base"),
    (other_size, "trained on another base"),
    (stranger, "unexpected keys .*loss_fn.weight"),
    (both_prefixes, "'cond_adapter.fc2.bias' with and without 'net.'"),
    (not_tensors, "holds more than tensors"),
]


@pytest.mark.parametrize(("change", "message"), MISFITS, ids=[row[0].__name__ for row in MISFITS])
def test_what_does_not_fit_is_named_and_changes_nothing(change, message):
    model, _, _, adapter, base = case()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_vlsm_adapter_checkpoint(model, change(dict(adapter), base))
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_files_that_cannot_be_read(tmp_path):
    model = case()[0]
    torch.save({"state_dict": {"net.x": Anything()}}, tmp_path / "pickled.ckpt")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Anything(), protocol=2))
    for name in ("pickled.ckpt", "empty.ckpt", "text.ckpt", "broken.safetensors", "plain.ckpt"):
        with pytest.raises(ValueError, match=f"{name} cannot be read .*allowed: a .safetensors file"):
            load_vlsm_adapter_checkpoint(model, tmp_path / name)
    with pytest.raises(ValueError, match="missing.ckpt is no file"):
        load_vlsm_adapter_checkpoint(model, tmp_path / "missing.ckpt")


@pytest.mark.parametrize("variant", ["V", "VL"])
def test_a_checkpoint_of_another_variant(variant):
    model = case(variant=variant)[0]
    adapter = case()[3]
    with pytest.raises(ValueError, match="unexpected keys .*cond_adapter.fc1.bias"):
        load_vlsm_adapter_checkpoint(model, adapter)


def test_models_that_cannot_take_one():
    base = reference_case("tiny", "dense", "V")[0]
    with pytest.raises(ValueError, match="peft_model has a LoraModel"):
        load_vlsm_adapter_checkpoint(get_peft_model(base, LoraConfig(target_modules=["q_proj"])), {})
    base = reference_case("tiny", "dense", "V")[0]
    targeted = get_peft_model(base, CONFIGS["dense"](target_modules=["mlp.fc2"]))
    with pytest.raises(ValueError, match="the adapter has target_modules"):
        load_vlsm_adapter_checkpoint(targeted, {})


def test_the_active_adapter_is_loaded():
    model, inputs, expected, adapter, _ = case("shallow")
    model.add_adapter("paper", CONFIGS["shallow"](variant="VLC", adapter_dim=12))
    model.set_adapter("paper")
    load_vlsm_adapter_checkpoint(model, adapter)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits.unsqueeze(1), expected, atol=1e-5, rtol=0)
        model.set_adapter("default")
        assert F.l1_loss(model(**inputs).logits.unsqueeze(1), expected) > 1e-4
