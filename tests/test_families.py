"""Every family, tuner and variant: gradients reach every adapter tensor, reload is exact, unload leaves nothing."""

import copy
import pickle
from functools import partial

import pytest
import torch
from models import ADAPTED, ADAPTED_IDS, CONFIGS
from peft import PeftModel, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

adapted = pytest.mark.parametrize(("family", "tuner", "variant"), ADAPTED, ids=ADAPTED_IDS)
CHECKPOINTING = {"none": None, "reentrant": {"use_reentrant": True}, "non-reentrant": {"use_reentrant": False}}


def adapt(family, tuner, variant, *, init_weights=False, model=None, **fields):
    model = family.build() if model is None else model
    return get_peft_model(model, CONFIGS[tuner](variant=variant, adapter_dim=6, init_weights=init_weights, **fields))


def enable_checkpointing(base, mode):
    """Gradient checkpointing of one kind; by hand where a model's layers know it and the model does not offer it."""
    if CHECKPOINTING.get(mode) is None:
        return
    if base.supports_gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING[mode])
        return
    for module in base.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module._gradient_checkpointing_func = partial(checkpoint, **CHECKPOINTING[mode])
            module.gradient_checkpointing = True


def adapter_parameters(model):
    return {name: parameter for name, parameter in model.named_parameters() if "vlsm_" in name}


def without_gradient(model):
    return [
        name
        for name, parameter in adapter_parameters(model).items()
        if parameter.grad is None or not parameter.grad.any() or not parameter.grad.isfinite().all()
    ]


@adapted
@pytest.mark.parametrize("init_weights", [False, "paper"], ids=str)
def test_one_backward_pass_reaches_every_adapter_tensor(family, tuner, variant, init_weights):
    model = adapt(family, tuner, variant, init_weights=init_weights)
    family.loss(model, family.inputs(model)).backward()
    assert adapter_parameters(model) and not without_gradient(model)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if "vlsm_" not in name)


@adapted
@pytest.mark.parametrize("mode", ["train", "autocast", "eager", *CHECKPOINTING])
def test_gradients_in_every_mode(family, tuner, variant, mode):
    base = family.build(attention="eager") if mode == "eager" else family.build()
    model = adapt(family, tuner, variant, model=base)
    enable_checkpointing(base, mode)
    model.train(mode != "none" and mode != "eager")
    inputs = family.inputs(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        loss = family.loss(model, inputs)
    loss.backward()
    assert not without_gradient(model)


@adapted
def test_checkpointing_gives_the_same_gradients(family, tuner, variant):
    found = {}
    for mode in CHECKPOINTING:
        torch.manual_seed(3)
        base = family.build()
        model = adapt(family, tuner, variant, model=base)
        model.train()
        enable_checkpointing(base, mode)
        family.loss(model, family.inputs(model)).backward()
        found[mode] = {name: parameter.grad for name, parameter in adapter_parameters(model).items()}
    for mode in ("reentrant", "non-reentrant"):
        torch.testing.assert_close(found[mode], found["none"], atol=1e-6, rtol=1e-4)


@adapted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, "autocast"], ids=str)
def test_a_fresh_adapter_changes_nothing_and_every_tensor_moves_in_three_steps(family, tuner, variant, dtype):
    autocast = dtype == "autocast"
    base = family.build().to(torch.float32 if autocast else dtype)
    inputs = family.inputs(base)
    inputs.pop("labels", None)
    inputs["pixel_values"] = inputs["pixel_values"].to(base.dtype)
    with torch.no_grad():
        before = family.run(base, inputs)
    model = adapt(family, tuner, variant, init_weights=True, model=base)
    with torch.no_grad():
        # In half precision a change of 1e-6 can tip the rounding of a logit by a unit in the last place or two.
        rounding = 0 if base.dtype == torch.float32 else 2 * torch.finfo(base.dtype).eps
        largest = before.abs().max().item()
        torch.testing.assert_close(
            family.run(model, inputs), before, atol=max(1e-4, rounding * largest), rtol=rounding
        )
    start = {name: parameter.detach().clone() for name, parameter in adapter_parameters(model).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = family.loss(model, inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [name for name, p in adapter_parameters(model).items() if torch.equal(p, start[name])] == []
    assert all(parameter.isfinite().all() for parameter in adapter_parameters(model).values())


@adapted
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_saved_adapter_reloads_bit_exactly(family, tuner, variant, low_cpu_mem_usage, tmp_path):
    model = adapt(family, tuner, variant)
    inputs = family.inputs(model)
    with torch.no_grad():
        expected = family.run(model, inputs)
        with model.disable_adapter():
            base_logits = family.run(model, inputs)
        assert not torch.allclose(expected, base_logits, atol=1e-3)
        torch.testing.assert_close(base_logits, family.run(family.build(), inputs), atol=0, rtol=0)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(family.build(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        torch.testing.assert_close(family.run(loaded, inputs), expected, atol=0, rtol=0)


def traces(model):
    """What unload must give back: names, attributes and hooks of every module."""
    return {
        name: (
            type(module),
            sorted(key for key in module.__dict__ if key not in ("training", "_output_capturing_hooks_installed")),
            {key: len(hooks) for key, hooks in module.__dict__.items() if key.endswith("_hooks")},
        )
        for name, module in model.named_modules()
    }


@adapted
@pytest.mark.parametrize("used", [False, True])
def test_unload_leaves_the_untouched_model(family, tuner, variant, used):
    base = family.build()
    inputs = family.inputs(base)
    with torch.no_grad():
        logits = family.run(base, inputs)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    seen = traces(base)
    model = adapt(family, tuner, variant, model=base)
    assert traces(base) != seen
    if used:
        family.loss(model, inputs).backward()
    unloaded = model.unload()
    assert unloaded is base
    assert traces(unloaded) == seen
    after = unloaded.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        torch.testing.assert_close(family.run(unloaded, inputs), logits, atol=0, rtol=0)


@adapted
def test_merging_is_refused_and_changes_nothing(family, tuner, variant):
    model = adapt(family, tuner, variant)
    inputs = family.inputs(model)
    with torch.no_grad():
        expected = family.run(model, inputs)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for merge in (model.merge_and_unload, model.merge_adapter, model.base_model.merge_and_unload):
        with pytest.raises(NotImplementedError, match="cannot be merged"):
            merge()
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        torch.testing.assert_close(family.run(model, inputs), expected, atol=0, rtol=0)


@adapted
@pytest.mark.parametrize("used", [False, True])
def test_deepcopy_is_independent(family, tuner, variant, used):
    model = adapt(family, tuner, variant)
    inputs = family.inputs(model)
    if used:
        family.loss(model, inputs).backward()
    duplicate = copy.deepcopy(model)
    duplicate.zero_grad()
    model.zero_grad()
    with torch.no_grad():
        torch.testing.assert_close(family.run(duplicate, inputs), family.run(model, inputs), atol=0, rtol=0)
    family.loss(duplicate, inputs).backward()
    assert not without_gradient(duplicate)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.unload()
    duplicate.zero_grad()
    family.loss(duplicate, inputs).backward()
    assert not without_gradient(duplicate)


@adapted
def test_pickle_before_the_first_forward(family, tuner, variant):
    model = adapt(family, tuner, variant)
    loaded = pickle.loads(pickle.dumps(model))
    inputs = family.inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(family.run(loaded, inputs), family.run(model, inputs), atol=0, rtol=0)
    family.loss(loaded, inputs).backward()
    assert not without_gradient(loaded)


@adapted
def test_a_callers_grad_mode_stays_in_force(family, tuner, variant):
    model = adapt(family, tuner, variant)
    inputs = family.inputs(model)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert not family.loss(model, inputs).requires_grad
    assert family.loss(model, inputs).requires_grad


@adapted
def test_several_adapters(family, tuner, variant, tmp_path):
    model = adapt(family, tuner, variant)
    inputs = family.inputs(model)
    torch.manual_seed(11)
    model.add_adapter("second", CONFIGS[tuner](variant=variant, adapter_dim=3, init_weights=False))
    with torch.no_grad():
        first = family.run(model, inputs)
        model.set_adapter("second")
        second = family.run(model, inputs)
        assert not torch.equal(first, second)
        model.save_pretrained(tmp_path, selected_adapters=["second"])
        model.load_adapter(tmp_path / "second", "third")
        model.set_adapter("third")
        torch.testing.assert_close(family.run(model, inputs), second, atol=0, rtol=0)
        model.set_adapter("default")
        model.delete_adapter("third")
        torch.testing.assert_close(family.run(model, inputs), first, atol=0, rtol=0)
    family.loss(model, inputs).backward()
    assert all(p.grad is None for name, p in model.named_parameters() if ".second." in name)
    assert all(p.grad is not None for name, p in adapter_parameters(model).items() if ".default." in name)
