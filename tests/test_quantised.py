"""Adapters on a base in 8 and 4 bits (bitsandbytes on CPU): they train, and the saved file holds the adapter alone.

`make test-quantised` runs this in an environment of its own: where bitsandbytes is installed peft imports it, which
takes seconds at every start and writes to stderr.
"""

from importlib.util import find_spec

import pytest
import torch
from models import CONFIGS, clipseg_inputs, tiny_clipseg
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from transformers import BitsAndBytesConfig, CLIPSegForImageSegmentation

pytestmark = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes: make test-quantised")
QUANTISED = {"int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """A CLIPSeg of width 64, the size of bitsandbytes' blocks."""
    folder = tmp_path_factory.mktemp("base")
    own = tiny_clipseg().config.to_dict()
    wide = {"hidden_size": 64, "intermediate_size": 128}
    model = tiny_clipseg(
        text_config={**own["text_config"], **wide},
        vision_config={**own["vision_config"], **wide},
        projection_dim=64,
        reduce_dim=64,
        decoder_intermediate_size=64,
    )
    model.save_pretrained(folder)
    return folder


def load(folder, kind):
    config = BitsAndBytesConfig(**QUANTISED[kind])
    model = CLIPSegForImageSegmentation.from_pretrained(
        folder, quantization_config=config, device_map="cpu", dtype=torch.float32
    )
    return model.eval()


@pytest.mark.filterwarnings(
    "ignore:MatMul8bitLt. inputs will be cast from torch.float32 to float16 during quantization"
)
@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("tuner", CONFIGS)
def test_a_quantised_base(kind, tuner, base_folder, tmp_path):
    base = load(base_folder, kind)
    fc2 = base.clip.vision_model.encoder.layers[0].mlp.fc2
    assert fc2.weight.dtype == {"int8": torch.int8, "nf4": torch.uint8}[kind]
    inputs = clipseg_inputs(base)
    with torch.no_grad():
        # In eval mode bitsandbytes packs 4-bit weights for the CPU, after which they cannot be trained through.
        before = load(base_folder, kind)(**inputs).logits
    torch.manual_seed(4)
    model = get_peft_model(base, CONFIGS[tuner](variant="VLC", adapter_dim=8, init_weights="paper"))
    adapters = [parameter for name, parameter in model.named_parameters() if "vlsm_" in name]
    assert {parameter.dtype for parameter in adapters} == {torch.float32}
    optimizer = torch.optim.AdamW(adapters, lr=1e-2)
    losses = []
    model.train()
    for _ in range(4):
        loss = model(**inputs).loss
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapters)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        with model.disable_adapter():
            torch.testing.assert_close(model(**inputs).logits, before, atol=0, rtol=0)
    # Reading its state spoils a packed 4-bit base of bitsandbytes 0.50 on CPU, so nothing is asked of it after this.
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        saved = list(file.keys())
    assert len(saved) == len(adapters) and all("vlsm_" in name for name in saved)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(load(base_folder, kind), tmp_path)
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=0, rtol=0)
