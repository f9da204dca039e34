"""What the tests of the task side share: a tiny random CLIPSeg, a small MedVLSM data set, the example scripts."""

import importlib.util
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState
from PIL import Image, ImageDraw
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizerFast,
)

from peft_vlsm.segmentation.training.tracking import read_log

TRANSFORMERS_5 = int(transformers.__version__.split(".")[0]) >= 5
# transformers 4.57 writes the tokenizer in both of its forms.
PROCESSOR_FILES = {"preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"} | (
    set() if TRANSFORMERS_5 else {"special_tokens_map.json", "vocab.json", "merges.txt"}
)
EXAMPLES = Path(__file__).parents[1] / "examples"
IMAGE_SIZE = 32
TOKENS = 24
COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}


def pil_processor(name: str) -> type:
    """An image processor's class that needs no torchvision: in transformers 4.57 the one of the bare name."""
    return getattr(transformers, f"{name}Pil" if TRANSFORMERS_5 else name)


def tiny_processor() -> CLIPSegProcessor:
    """A tokenizer of single letters, so that every prompt tokenizes, and an image processor without torchvision."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:
        # Files, since transformers 4.57 makes no tokenizer from a vocabulary in memory.
        Path(folder, "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        tokenizer = CLIPTokenizerFast.from_pretrained(folder, model_max_length=TOKENS)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPSegProcessor(pil_processor("ViTImageProcessor")(size=size), tokenizer)


def tiny_clipseg() -> CLIPSegForImageSegmentation:
    """Four layers an encoder, of which the last vision layer does not reach the mask; seeded."""
    tokenizer = tiny_processor().tokenizer
    torch.manual_seed(0)
    shared = {"num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPSegConfig(
        text_config={
            **shared,
            "hidden_size": 16,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**shared, "hidden_size": 24, "image_size": IMAGE_SIZE, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1, 2],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    model = CLIPSegForImageSegmentation(config)
    # transformers' own start of the decoder, normal with deviation 0.02, learns nothing within a test.
    for module in model.decoder.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.ConvTranspose2d)):
            module.reset_parameters()
    return model.eval()


def remove_processor(folder: Path) -> None:
    """Removes the tokenizer and the image processor from a model's folder."""
    for name in PROCESSOR_FILES | {"processor_config.json"}:
        (folder / name).unlink(missing_ok=True)


def remove_tokenizer(folder: Path) -> None:
    """Removes the tokenizer, all but its settings."""
    for name in PROCESSOR_FILES & {"tokenizer.json", "vocab.json", "merges.txt"}:
        (folder / name).unlink()


def move_trainable_weights(model: torch.nn.Module) -> None:
    """What training would do: every weight that may change does, always in the same way."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def write_base_model(folder: Path) -> Path:
    """Saves the tiny model and its processor, as a base model on disk."""
    tiny_clipseg().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def write_dataset(folder: Path, sizes: dict[str, int] | None = None, suffix: str = ".png") -> Path:
    """
    Writes images of one coloured disc each, their masks and annotations.

    Args:
        folder (`Path`): the data folder to make.
        sizes (`dict[str, int]`): rows of each split.
        suffix (`str`): of image and mask files; ".jpg" for JPEG masks.
    """
    for name in ("anns", "images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, (split, size) in enumerate((sizes or {"train": 6, "val": 3, "test": 3}).items()):
        rows = [_write_row(folder, f"{split}_{index}{suffix}", 100 * number + index) for index in range(size)]
        write_rows(folder, split, rows)
    return folder


def write_rows(folder: Path, split: str, rows: object) -> None:
    """Writes an annotation file."""
    (folder / "anns" / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


def read_rows(folder: Path, split: str) -> list[dict]:
    """Reads an annotation file as it is, for a test to change it."""
    return json.loads((folder / "anns" / f"{split}.json").read_text(encoding="utf-8"))


def _write_row(folder: Path, name: str, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    width, height = 40, 36
    x, y, radius = rng.integers(10, 30), rng.integers(10, 26), rng.integers(5, 9)
    color = list(COLORS)[rng.integers(len(COLORS))]
    image = Image.fromarray(rng.integers(0, 60, (height, width, 3), dtype=np.uint8))
    mask = Image.new("L", (width, height))
    box = (int(x - radius), int(y - radius), int(x + radius), int(y + radius))
    ImageDraw.Draw(image).ellipse(box, fill=COLORS[color])
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    image.save(folder / "images" / name)
    mask.save(folder / "masks" / name)
    prompts = {"p0": "", "p1": "disc", "p2": f"{color} disc", "p3": [f"one {color} disc", f"a {color} round disc"]}
    return {"img_name": name, "mask_name": name, "prompts": prompts, "bbox": list(box)}


def load_example(name: str) -> ModuleType:
    """Imports examples/NAME.py, once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def forget_accelerator() -> None:
    """Each run of a script is a process of its own for users; accelerate keeps its state in the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_example(module: ModuleType, *arguments: object) -> None:
    """Runs a script's `main` in this process with these flags."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        module.main()


def failure_of(capsys, module: ModuleType, *arguments: object) -> str:
    """Runs a script, which must exit with status 2 and one error line on stderr; returns the line."""
    with pytest.raises(SystemExit) as exit_:
        run_example(module, *arguments)
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert exit_.value.code == 2 and len(errors) == 1 and captured.out == ""
    assert "Traceback" not in captured.err and "usage" not in captured.err
    return errors[0]


def assert_same_run(resumed: Path, whole: Path) -> None:
    """The best weights to the byte, and every line of the log: the best epoch may lie before the run stopped."""
    for file in whole.glob("*.safetensors"):
        assert (resumed / file.name).read_bytes() == file.read_bytes()
    assert any("train_loss" in line for line in read_log(whole)) and read_log(resumed) == read_log(whole)
