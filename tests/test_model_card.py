"""The card of a saved adapter holds lines that load it where `import peft_vlsm` has not been said yet."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from models import CONFIGS, tiny_clipseg
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CLIPSegForImageSegmentation


@pytest.fixture
def adapted(tmp_path):
    tiny_clipseg().save_pretrained(tmp_path / "base")
    base = CLIPSegForImageSegmentation.from_pretrained(tmp_path / "base")
    return get_peft_model(base, CONFIGS["dense"](adapter_dim=2))


def snippets(card):
    return re.findall(r"```python\n(import peft_vlsm.*?)```", card.read_text(), re.DOTALL)


@pytest.mark.parametrize("beside", [[], ["tokenizer_config.json"]], ids=["alone", "with a tokenizer"])
def test_the_snippet_runs_as_it_stands(adapted, base, tmp_path, beside):
    adapted.save_pretrained(tmp_path / "out", save_embedding_layers=False)
    for name in beside:
        shutil.copy(base / name, tmp_path / "out")
    (code,) = snippets(tmp_path / "out" / "README.md")
    assert "KeyError: 'VLSM_DENSE_ADAPTER'" in code
    code = code.replace("this adapter's folder, or its name on the Hub", str(tmp_path / "out"))
    code += "print(type(model.base_model).__name__)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "DenseAdapterModel\n", done.stderr
    without = code.partition("\n")[2]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", without], capture_output=True, text=True)
    assert done.returncode != 0 and "KeyError: 'VLSM_DENSE_ADAPTER'" in done.stderr


def test_a_base_without_a_name_is_given(tmp_path):
    base = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    get_peft_model(base, CONFIGS["shallow"](target_modules=["0"])).save_pretrained(tmp_path)
    (code,) = snippets(tmp_path / "README.md")
    assert "VLSM_SHALLOW_ADAPTER" in code
    base = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    names: dict = {"base_model": base}
    exec(code.replace("this adapter's folder, or its name on the Hub", str(tmp_path)), names)
    assert torch.is_tensor(names["model"](torch.ones(1, 8)))


def test_saving_again_adds_nothing_and_keeps_what_the_user_wrote(adapted, tmp_path):
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    card = tmp_path / "README.md"
    card.write_text(card.read_text() + "\nTrained on polyps.\n")
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    assert "Trained on polyps." in card.read_text() and len(snippets(card)) == 1


def test_a_card_without_the_template_gains_a_section(adapted, tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n# Mine\n")
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    assert len(snippets(card)) == 1 and "license: mit" in card.read_text() and "# Mine" in card.read_text()


def test_a_named_adapter_is_told_in_the_card_above_it(adapted, tmp_path):
    adapted.add_adapter("other", CONFIGS["dense"](adapter_dim=2))
    adapted.save_pretrained(tmp_path, selected_adapters=["other"], save_embedding_layers=False)
    assert not (tmp_path / "other" / "README.md").exists() and len(snippets(tmp_path / "README.md")) == 1


def test_other_readmes_are_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("# My project\n")
    CONFIGS["dense"]().save_pretrained(tmp_path / "settings")
    assert (tmp_path / "README.md").read_text() == "# My project\n"
    assert [file.name for file in (tmp_path / "settings").iterdir()] == ["adapter_config.json"]
    lora = get_peft_model(nn.Sequential(nn.Linear(8, 8)), LoraConfig(target_modules=["0"]))
    lora.save_pretrained(tmp_path / "lora")
    assert "peft_vlsm" not in (tmp_path / "lora" / "README.md").read_text()
