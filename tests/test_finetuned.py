"""What a run leaves on disk loads again, whichever kind it is; what does not load is named."""

import json
import shutil

import pytest
import torch
from builders import move_trainable_weights, remove_processor, remove_tokenizer, tiny_processor
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from segmenters import write_sam3_model
from transformers import CLIPSegForImageSegmentation

from peft_vlsm import DenseAdapterConfig
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import (
    load_base,
    load_finetuned,
    make_output_dir,
    save_finetuned,
    weights_to_save,
)

KINDS = ("dense", "lora", "decoder", "full")


def _finetuned(base, kind):
    """A model whose trainable weights differ from the base's."""
    model, processor = load_base(str(base))
    if kind == "dense":
        model = get_peft_model(model, DenseAdapterConfig(adapter_dim=4))
    elif kind == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    elif kind == "decoder":
        model.requires_grad_(False).decoder.requires_grad_(True)
    move_trainable_weights(model)
    return model.eval(), processor


@torch.no_grad()
def _logits(model):
    generator = torch.Generator().manual_seed(0)
    tokens = tiny_processor().tokenizer(["disc", "red disc"], padding=True, return_tensors="pt")
    return model(pixel_values=torch.randn(2, 3, 32, 32, generator=generator), **tokens).logits


@pytest.mark.parametrize("kind", KINDS)
def test_saved_weights_load_bit_exactly(base, tmp_path, kind):
    model, processor = _finetuned(base, kind)
    save_finetuned(model, processor, tmp_path / "out")
    again, processor_again = load_finetuned(tmp_path / "out")
    assert torch.equal(_logits(again), _logits(model))
    assert not torch.allclose(_logits(again), _logits(load_base(str(base))[0]), atol=1e-3)
    assert not again.training
    assert processor_again.tokenizer("disc") == processor.tokenizer("disc")
    assert not (tmp_path / "out" / ".writing").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_16_bits_load_in_float32(base, tmp_path, dtype):
    """As SAM3 and others are published: transformers would keep the 16 bits, and adapters would train in them."""
    model, processor = load_base(str(base))
    model.to(dtype).save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    again, _ = load_base(str(tmp_path / "half"))
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    assert torch.equal(again.state_dict()["decoder.film_mul.weight"], model.decoder.film_mul.weight.float())


def test_the_active_adapter_alone_is_written(base, tmp_path):
    model, processor = _finetuned(base, "dense")
    expected = _logits(model)
    model.add_adapter("other", DenseAdapterConfig(adapter_dim=6))
    assert weights_to_save(model) and not any("other" in name.split(".") for name in weights_to_save(model))
    save_finetuned(model, processor, tmp_path / "out")
    assert torch.equal(_logits(load_finetuned(tmp_path / "out")[0]), expected)
    model.set_adapter("other")
    move_trainable_weights(model)
    save_finetuned(model.eval(), processor, tmp_path / "other")
    assert torch.equal(_logits(load_finetuned(tmp_path / "other")[0]), _logits(model))
    assert not any(path.is_dir() for path in (tmp_path / "other").iterdir())


def test_a_processor_is_stored_as_it_was_before_its_first_batch(base, tmp_path):
    model, processor = _finetuned(base, "decoder")
    processor.tokenizer(["disc", "red disc"], padding=True, truncation=True, return_tensors="pt")
    save_finetuned(model, processor, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert stored["padding"] is None and stored["truncation"] is None
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("layers", [3, 6])
def test_lora_of_a_base_of_another_depth_is_refused(base, tmp_path, layers):
    model, processor = _finetuned(base, "lora")
    save_finetuned(model, processor, tmp_path / "out")
    other = load_base(str(base))[0].config
    other.text_config.num_hidden_layers = layers
    CLIPSegForImageSegmentation(other).save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    with pytest.raises(
        InputError, match="out does not fit the base model .*other: [0-9]+ weights have no counterpart"
    ):
        load_finetuned(tmp_path / "out", base=str(tmp_path / "other"))


@pytest.mark.parametrize("kind", ["dense", "decoder"])
def test_a_base_model_that_moved_is_given(base, tmp_path, kind):
    moved = shutil.copytree(base, tmp_path / "before")
    model, processor = _finetuned(moved, kind)
    save_finetuned(model, processor, tmp_path / "out")
    moved.rename(tmp_path / "after")
    with pytest.raises(InputError, match="the model .*before cannot be loaded"):
        load_finetuned(tmp_path / "out")
    again, _ = load_finetuned(tmp_path / "out", base=str(tmp_path / "after"))
    assert torch.equal(_logits(again), _logits(model))


def test_each_save_replaces_the_former_kind(base, tmp_path):
    out = tmp_path / "out"
    for kind in (*KINDS, "decoder"):
        (out / "all_results.json").parent.mkdir(exist_ok=True)
        (out / "all_results.json").write_text("{}")
        model, processor = _finetuned(base, kind)
        save_finetuned(model, processor, out)
        assert len(list(out.glob("*.safetensors"))) == 1
        assert torch.equal(_logits(load_finetuned(out)[0]), _logits(model))
        assert not (out / "all_results.json").exists(), "results of other weights"


@pytest.mark.parametrize("kind", ["dense", "full"])
@pytest.mark.parametrize("card, kept", [("# Mine\n", True), ("\n", False)])
def test_a_card_that_someone_wrote_is_kept(base, tmp_path, kind, card, kept):
    model, processor = _finetuned(base, kind)
    save_finetuned(model, processor, tmp_path)
    (tmp_path / "README.md").write_text(card)
    save_finetuned(model, processor, tmp_path)
    assert ((tmp_path / "README.md").read_text() == card) == (kept or kind == "full")


def test_a_save_that_fails_leaves_the_former_weights(base, tmp_path, monkeypatch):
    out = tmp_path / "out"
    model, processor = _finetuned(base, "dense")
    save_finetuned(model, processor, out)
    before = _logits(model)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(processor), "save_pretrained", full_disk)
    full, _ = _finetuned(base, "full")
    with pytest.raises(InputError, match="out cannot be written .*No space left on device"):
        save_finetuned(full, processor, out)
    monkeypatch.undo()
    assert torch.equal(_logits(load_finetuned(out)[0]), before)


def _spoil_config(out):
    (out / "decoder_config.json").write_text("{")


def _spoil_weights(out):
    (out / "decoder.safetensors").write_bytes(b"nothing")


def _drop_weight(out):
    weights = load_file(out / "decoder.safetensors")
    del weights["decoder.film_add.bias"]
    save_file(weights, out / "decoder.safetensors")


def _misshape_weight(out):
    weights = load_file(out / "decoder.safetensors")
    save_file(weights | {"decoder.film_add.bias": torch.zeros(3)}, out / "decoder.safetensors")


PROBLEMS = {
    "no config": (lambda out: (out / "decoder_config.json").unlink(), "holds no fine-tuned model"),
    "broken config": (_spoil_config, "cannot be loaded"),
    "config without base": (lambda out: (out / "decoder_config.json").write_text("{}"), "cannot be loaded"),
    "no weights": (lambda out: (out / "decoder.safetensors").unlink(), "cannot be loaded"),
    "broken weights": (_spoil_weights, "cannot be loaded"),
    "missing weight": (_drop_weight, "does not hold the decoder of the model"),
    "misshapen weight": (_misshape_weight, "cannot be loaded"),
    "no processor": (remove_processor, "cannot be loaded"),
    "no tokenizer": (remove_tokenizer, "is tokenizer.json missing|cannot be loaded"),
}


@pytest.mark.parametrize("spoil, problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_damaged_folder_is_named(base, tmp_path, spoil, problem):
    model, processor = _finetuned(base, "decoder")
    save_finetuned(model, processor, tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(InputError, match=problem) as error:
        load_finetuned(tmp_path / "out")
    assert str(tmp_path / "out") in str(error.value)


def test_a_damaged_adapter_is_named(base, tmp_path):
    model, processor = _finetuned(base, "dense")
    save_finetuned(model, processor, tmp_path / "out")
    (tmp_path / "out" / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="out cannot be loaded"):
        load_finetuned(tmp_path / "out")


def test_an_adapter_of_an_unknown_type_is_named(base, tmp_path):
    model, processor = _finetuned(base, "dense")
    save_finetuned(model, processor, tmp_path / "out")
    config = tmp_path / "out" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "NONE_SUCH"}))
    with pytest.raises(InputError, match="out cannot be loaded"):
        load_finetuned(tmp_path / "out")


def test_an_output_dir_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--output_dir .*file/out cannot be made"):
        make_output_dir(tmp_path / "file" / "out")


def test_sam3_as_it_is_published_beside_its_video_tracker(tmp_path):
    """facebook/sam3 is a sam3_video checkpoint: the detector's weights and settings are a part of it."""
    video = write_sam3_model(tmp_path / "video")
    expected, _ = load_base(str(video))
    from transformers.models.sam3_video.configuration_sam3_video import Sam3VideoConfig

    Sam3VideoConfig(detector_config=json.loads((video / "config.json").read_text())).save_pretrained(video)
    weights = {f"detector_model.{name}": tensor for name, tensor in load_file(video / "model.safetensors").items()}
    weights["tracker_model.memory.weight"] = torch.zeros(2)
    save_file(weights, video / "model.safetensors", metadata={"format": "pt"})
    model, _ = load_base(str(video))
    assert model.config.model_type == "sam3"
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
