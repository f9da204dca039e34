"""Output folders as `examples/finetune.py` leaves them, made without training: weights moved, figures chosen."""

from pathlib import Path
from typing import Any

from builders import move_trainable_weights
from peft import IA3Config, LoraConfig, get_peft_model
from PIL import Image

from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig
from peft_vlsm.segmentation.data.transforms import fit_processor
from peft_vlsm.segmentation.models.finetuned import load_base, quiet_loading, save_finetuned, save_results
from peft_vlsm.segmentation.models.segmenter import family_of

CONFIGS = {
    "dense": lambda head: DenseAdapterConfig(
        variant="VLC", adapter_dim=4, cond_adapter_dim=6, modules_to_save=list(head)
    ),
    "shallow": lambda head: ShallowAdapterConfig(variant="V", adapter_dim=4),
    "lora": lambda head: LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    "ia3": lambda head: IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
}
METHODS = (*CONFIGS, "decoder", "full")
RESULTS = {
    "test_dice": 0.75,
    "test_iou": 0.6125,
    "val_dice": 0.8,
    "val_iou": 0.7,
    "trainable_parameters": 1234,
    "total_parameters": 12340,
    "train_steps": 1200,
    "train_seconds": 3.5,
    "data_dir": "/home/somebody/data/polyps",
    "learning_rate": 0.001,
    "seed": 42,
}


def write_run(folder: Path, base: Path, method: str, side: int | None = None, **results: Any) -> Path:
    """Weights of a method on the base model, the processor, `all_results.json` and two pictures."""
    model, processor = load_base(str(base), side)
    fit_processor(processor, model.config, side)
    if method in CONFIGS:
        with quiet_loading():
            model = get_peft_model(model, CONFIGS[method](family_of(model).head))
    elif method == "decoder":
        model.requires_grad_(False)
        for part in family_of(model).head:
            model.get_submodule(part).requires_grad_(True)
    move_trainable_weights(model)
    save_finetuned(model, processor, folder)
    picture = Image.new("RGB", (8, 8))
    settings = {"method": method, "model_name_or_path": str(base), "output_dir": str(folder)}
    save_results(folder, {**RESULTS, **settings, **results}, {"samples": picture, "curves": picture})
    return folder
