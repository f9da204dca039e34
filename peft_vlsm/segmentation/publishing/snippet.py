"""The Python lines of a model card: they load what was published, and segment one image by one prompt."""

import json

from peft_vlsm.segmentation.publishing.run_folder import RunFolder

IMAGE = "image.png"
_REASONS = {
    "dense": "first: it tells peft what a VLSM_DENSE_ADAPTER is",
    "shallow": "first: it tells peft what a VLSM_SHALLOW_ADAPTER is",
}
_BASE = "base_model = {model_class}.from_pretrained({base})"
# A family that is built for one image size must be built for the size of training.
_SIZED_BASE = 'base_model, _ = load_base({base}, image_processor.size["height"])'
_ADAPTER = "model = PeftModel.from_pretrained(base_model, name).eval()"
_DECODER = """\
model = base_model.eval()
model.load_state_dict(load_file(cached_file(name, "decoder.safetensors")), strict=False)"""
_FULL = "model = {model_class}.from_pretrained(name).eval()"
_BASE_NAMES = {
    "adapter": "PeftConfig.from_pretrained(name).base_model_name_or_path",
    "decoder": 'json.loads(Path(cached_file(name, "decoder_config.json")).read_text())["base_model_name_or_path"]',
}
_CODE = """\
import peft_vlsm  # {reason}
{imports}

name = {name}  # or a folder with its files
image_processor = AutoImageProcessor.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
{loading}

image = Image.open("{image}").convert("RGB")
pixels = image_processor(image, return_tensors="pt")
tokens = tokenizer([{prompt}], truncation=True, return_tensors="pt")
with torch.no_grad():
    output = model(**pixels, **tokens{flags})
logits = output.{masks}.reshape(1, 1, *output.{masks}.shape[-2:])
logits = torch.nn.functional.interpolate(logits, size=(image.height, image.width), mode="bilinear")
mask = logits[0, 0] > 0  # (height, width), True where the prompt's object is
Image.fromarray(mask.numpy()).save("mask.png")"""


def loading_snippet(run: RunFolder, name: str, prompt: str) -> str:
    """
    Writes the lines.

    Args:
        run ([`RunFolder`]): says what there is to load.
        name (`str`): the repository's name on the Hub, or a folder.
        prompt (`str`): what the lines segment in `image.png`.

    Returns:
        `str`: Python code that begins with `import peft_vlsm` and needs no torchvision. It leaves a boolean tensor
        `mask` of shape `(height, width)`, and a file `mask.png`.
    """
    return _CODE.format(
        reason=_REASONS.get(run.method, "the package that trained this"),
        imports="\n".join(_imports(run)),
        name=json.dumps(name, ensure_ascii=False),
        loading=_loading(run),
        image=IMAGE,
        prompt=json.dumps(prompt, ensure_ascii=False),
        flags="".join(f", {flag}=True" for flag in run.family.flags),
        masks=run.family.masks,
    )


def _loading(run: RunFolder) -> str:
    if run.kind == "full":
        return _FULL.format(model_class=run.family.name)
    base = _BASE if run.family.fixed_image_size is None else _SIZED_BASE
    lines = [base.format(model_class=run.family.name, base=_BASE_NAMES[run.kind])]
    return "\n".join([*lines, _ADAPTER if run.kind == "adapter" else _DECODER])


def _imports(run: RunFolder) -> list[str]:
    family, decoder = run.family, run.kind == "decoder"
    sized = family.fixed_image_size is not None and run.kind != "full"
    # transformers' own namespace has a stand-in for Sam3Model where torchvision is missing.
    module = f"transformers.models.{family.model_type}.modeling_{family.model_type}"
    lines = [
        "import json" if decoder else "",
        "from pathlib import Path" if decoder else "",
        "import torch",
        "from peft import PeftConfig, PeftModel" if run.kind == "adapter" else "",
        "from PIL import Image",
        "from safetensors.torch import load_file" if decoder else "",
        "from transformers import AutoImageProcessor, AutoTokenizer",
        "" if sized else f"from {module} import {family.name}",
        "from transformers.utils import cached_file" if decoder else "",
        "from peft_vlsm.segmentation.models.finetuned import load_base" if sized else "",
    ]
    return [line for line in lines if line]
