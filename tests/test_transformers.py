"""transformers' own ways to adapters: load_adapter on a plain model, from_pretrained of an adapter folder, Trainer."""

import peft
import pytest
import torch
import transformers
from models import CONFIGS, clipseg_inputs, tiny_clipseg
from packaging.version import Version
from peft import get_peft_model
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import CLIPSegForImageSegmentation, Trainer, TrainingArguments
from transformers.integrations.peft import MIN_PEFT_VERSION

tuners = pytest.mark.parametrize("tuner", CONFIGS)
loads_adapters = pytest.mark.skipif(
    Version(transformers.__version__).major >= 5 and Version(peft.__version__) < Version("0.21"),
    reason="transformers 5 puts no adapter's weights, LoRA's neither, where peft before 0.21 has them",
)


class Samples(Dataset):
    """A few pairs of image and prompt with masks that can be learnt: the upper half."""

    def __init__(self, rows: int = 8):
        inputs = clipseg_inputs(tiny_clipseg(), batch=rows)
        inputs["labels"] = torch.zeros_like(inputs["labels"])
        inputs["labels"][:, :16] = 1.0
        self.rows = [{name: value[row] for name, value in inputs.items()} for row in range(rows)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.fixture
def folder(tmp_path):
    tiny_clipseg().save_pretrained(tmp_path / "base")
    return tmp_path


def plain(folder):
    return CLIPSegForImageSegmentation.from_pretrained(folder / "base").eval()


def saved_adapter(tuner, folder):
    torch.manual_seed(4)
    model = get_peft_model(plain(folder), CONFIGS[tuner](variant="VLC", adapter_dim=12, init_weights=False)).eval()
    model.save_pretrained(folder / "adapter")
    return model


@loads_adapters
@tuners
def test_load_adapter_on_the_plain_model_computes_and_trains(tuner, folder):
    adapted = saved_adapter(tuner, folder)
    model = plain(folder)
    model.load_adapter(folder / "adapter", is_trainable=True)
    inputs = clipseg_inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, adapted(**inputs).logits, atol=0, rtol=0)
    model(**inputs).loss.backward()
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable and all("vlsm_" in name for name in trainable)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trainable.values())


@loads_adapters
@tuners
def test_from_pretrained_of_an_adapter_folder(tuner, folder):
    adapted = saved_adapter(tuner, folder)
    model = CLIPSegForImageSegmentation.from_pretrained(folder / "adapter").eval()
    inputs = clipseg_inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, adapted(**inputs).logits, atol=0, rtol=0)


@tuners
def test_add_adapter_works_where_transformers_accepts_the_installed_peft(tuner, folder):
    model = plain(folder)
    config = CONFIGS[tuner](variant="VL", adapter_dim=4, init_weights=False)
    # transformers' own requirement: 5.24 asks for a peft that is not out yet.
    if Version(peft.__version__) < Version(MIN_PEFT_VERSION):
        with pytest.raises(ValueError, match="The version of PEFT you are using is not compatible"):
            model.add_adapter(config)
        return
    model.add_adapter(config)
    model(**clipseg_inputs(model)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def trainer(model, folder, **settings):
    arguments = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 4, "learning_rate": 2e-2, "max_steps": 6,
        "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2,
        "report_to": [], "seed": 3, "use_cpu": True, "label_names": ["labels"], "load_best_model_at_end": True,
        "metric_for_best_model": "loss", "disable_tqdm": True, "dataloader_pin_memory": False,
        "prediction_loss_only": True,
    }  # fmt: skip
    data = Samples()
    return Trainer(
        model=model, args=TrainingArguments(**{**arguments, **settings}), train_dataset=data, eval_dataset=data
    )


def fresh(tuner, folder):
    torch.manual_seed(4)
    return get_peft_model(plain(folder), CONFIGS[tuner](variant="VLC", adapter_dim=8, init_weights="paper"))


@tuners
def test_trainer_saves_resumes_and_loads_the_best_model(tuner, folder):
    straight = trainer(fresh(tuner, folder), folder)
    straight.train()
    losses = [entry["eval_loss"] for entry in straight.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    checkpoint = folder / "out" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file() and not (checkpoint / "model.safetensors").exists()
    best = load_file(f"{straight.state.best_model_checkpoint}/adapter_model.safetensors")
    kept = {name.replace(".default", ""): p for name, p in straight.model.named_parameters() if "vlsm_" in name}
    assert kept.keys() == best.keys()
    assert all(torch.equal(kept[name], value) for name, value in best.items())

    last = load_file(folder / "out" / "checkpoint-6" / "adapter_model.safetensors")
    resumed = trainer(fresh(tuner, folder), folder, output_dir=str(folder / "resumed"))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    again = load_file(folder / "resumed" / "checkpoint-6" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in last.items())
