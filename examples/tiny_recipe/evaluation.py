"""How good a model is on held-out scenes, and the model card that says so."""

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from tiny_recipe.objects import KINDS
from tiny_recipe.prompts import make_contrast_pair, make_prompt
from tiny_recipe.scenes import make_scene

HELD_OUT_SEED = 2**31
HELD_OUT_SCENES = 1000


@torch.inference_mode()
def evaluate(model: CLIPSegForImageSegmentation, processor: CLIPSegProcessor, scenes: int = HELD_OUT_SCENES) -> dict:
    """
    Measures a model on the held-out scenes: overlap with the prompted mask, and whether the prompt is followed.

    Args:
        model (`CLIPSegForImageSegmentation`): the model, in eval mode.
        processor (`CLIPSegProcessor`): its processor.
        scenes (`int`, defaults to 1000): how many held-out scenes, always the first ones.

    Returns:
        `dict`: `dice`, the mean over scenes of one random prompt's Dice, and `dice_<kind>` for each kind of scene.
        For pairs of prompts that name one object each of the same image: `prompt_following`, the share of masks that
        overlap (Dice) the named object more than the other one, `dice_named` and `dice_other`, the mean Dice with the
        named and with the other object. `scenes` and `pairs` count what was measured.
    """
    dice: dict[str, list[float]] = {kind: [] for kind in KINDS}
    named: list[float] = []
    other: list[float] = []
    for index in tqdm(range(scenes), desc="held-out scenes", unit="scene"):
        rng = np.random.default_rng([HELD_OUT_SEED, index, 1])
        scene = make_scene(HELD_OUT_SEED, index)
        prompts = [make_prompt(scene, rng), *(make_contrast_pair(scene, rng) or ())]
        texts = [prompt.text for prompt in prompts]
        images = [scene.image] * len(texts)
        inputs = processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt")
        predicted = (model(**inputs).logits > 0).numpy()
        dice[scene.kind].append(dice_score(predicted[0], prompts[0].mask))
        if len(prompts) == 3:
            for mask, right, wrong in ((predicted[1], prompts[1], prompts[2]), (predicted[2], prompts[2], prompts[1])):
                named.append(dice_score(mask, right.mask))
                other.append(dice_score(mask, wrong.mask))
    return {
        "scenes": scenes,
        "dice": float(np.mean([score for scores in dice.values() for score in scores])),
        **{f"dice_{kind}": float(np.mean(scores)) for kind, scores in dice.items() if scores},
        "pairs": len(named) // 2,
        "prompt_following": float(np.mean(np.greater(named, other))),
        "dice_named": float(np.mean(named)),
        "dice_other": float(np.mean(other)),
    }


def dice_score(predicted: np.ndarray, mask: np.ndarray) -> float:
    """Dice of two bool masks, of which the second is not empty."""
    return float(2 * (predicted & mask).sum() / (predicted.sum() + mask.sum()))


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-segmentation
language: en
tags: [clipseg, image-segmentation, text-prompt, synthetic]
---

# tiny_clipseg

A `CLIPSegForImageSegmentation` of {parameters:,} parameters for tests and demonstrations: images of 128 x 128 pixels,
patches of 16, six layers in each encoder. `examples/pretrain_tiny.py` trained it from scratch on synthetic scenes that
it draws itself (coloured shapes, greyscale shapes, greyscale phantoms); no other data and no other model's weights
went into it. It knows prompts such as `one small red circle, located in top left of the image`.

```python
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

model = CLIPSegForImageSegmentation.from_pretrained("examples/tiny_clipseg")
processor = CLIPSegProcessor.from_pretrained("examples/tiny_clipseg")
```

## Measured on held-out scenes

{scenes} scenes of a seed that training cannot draw from; {pairs} of them with a pair of prompts that name one object
each. A mask is where the logits exceed 0; every figure is a mean over masks.

| figure | value |
| --- | --- |
{rows}

`python examples/pretrain_tiny.py --evaluate examples/tiny_clipseg` measures these figures again.

## Training

{max_train_steps} steps of {batch_size} scenes with {prompts} prompts each, {minutes:.0f} minutes on {threads} CPU
threads, seed {seed}; AdamW, a one-cycle learning rate of at most {learning_rate}, loss 1.5 Dice + 1.0 binary
cross-entropy.

## Limits

It has seen drawn shapes only: on photographs and medical images it is a start for fine-tuning, not a segmenter. Any
English text becomes tokens, but words outside the synthetic prompts carry no meaning yet. Visual prompts
(`conditional_pixel_values`) were not trained.
"""

CARD_ROWS = {
    "dice": "Dice, one random prompt per scene",
    "dice_colour": "the same, coloured shapes only",
    "dice_greyscale": "the same, greyscale shapes only",
    "dice_phantom": "the same, phantoms only",
    "prompt_following": "share of the pairs' masks that overlap the named object more than the other",
    "dice_named": "Dice of the pairs' masks with the named object",
    "dice_other": "Dice of the pairs' masks with the other object",
}


def model_card(figures: dict, training: dict) -> str:
    """
    The README.md beside the weights.

    Args:
        figures (`dict`): what [`evaluate`] measured.
        training (`dict`): `parameters`, `max_train_steps`, `batch_size`, `prompts`, `minutes`, `threads`, `seed` and
            `learning_rate` of the run.

    Returns:
        `str`: Markdown with YAML front matter.
    """
    rows = [f"| {label} | {figures[name]:.4f} |" for name, label in CARD_ROWS.items() if name in figures]
    return CARD.format_map({**training, **figures, "rows": "\n".join(rows)})
