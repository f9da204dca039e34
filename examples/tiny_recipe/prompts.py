"""Prompts in VLSM-Adapter's manner: number, size, colour, shape and location of objects, and their mask."""

from dataclasses import dataclass

import numpy as np

from tiny_recipe.objects import Scene, SceneObject

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Prompt:
    """
    Words that name some of a scene's objects.

    Args:
        text (`str`): the prompt.
        named (`tuple[int, ...]`): the indices of the objects that match it, at least one.
        mask (`np.ndarray` of shape `(IMAGE_SIZE, IMAGE_SIZE)`): bool, the union of their masks.
    """

    text: str
    named: tuple[int, ...]
    mask: np.ndarray


def make_prompt(scene: Scene, rng: np.random.Generator) -> Prompt:
    """
    Draws a prompt for a random object of the scene, with a random choice of its attributes.

    Args:
        scene ([`Scene`]): the scene.
        rng (`np.random.Generator`): what draws the object, the attributes and the wording.

    Returns:
        [`Prompt`]: its mask covers every object that matches the words, not the drawn one alone.
    """
    if scene.kind == "phantom" and rng.random() < 0.1:
        everything = tuple(range(len(scene.objects)))
        return Prompt("the whole body", everything, np.any([item.mask for item in scene.objects], axis=0))
    target = scene.objects[int(rng.integers(len(scene.objects)))]
    attributes = {"shape"}
    attributes |= {name for name in ("colour", "size", "location") if getattr(target, name) and rng.random() < 0.5}
    if "colour" in attributes and rng.random() < 0.1:
        attributes.remove("shape")
    return describe(scene, target, attributes, rng)


def make_contrast_pair(scene: Scene, rng: np.random.Generator) -> tuple[Prompt, Prompt] | None:
    """
    Two prompts for one image, each of which names exactly one object, and not the same one.

    Args:
        scene ([`Scene`]): the scene.
        rng (`np.random.Generator`): what draws the objects and the wording.

    Returns:
        `tuple[Prompt, Prompt]` or `None`: None where the scene's objects cannot be told apart by words.
    """
    first, second = rng.permutation(len(scene.objects))[:2]
    attributes = {"shape", "colour", "size", "location"}
    pair = tuple(describe(scene, scene.objects[i], attributes, rng) for i in (first, second))
    return pair if pair[0].named == (first,) and pair[1].named == (second,) else None


def describe(scene: Scene, target: SceneObject, attributes: set[str], rng: np.random.Generator) -> Prompt:
    """
    Words and mask of all the objects that share the given attributes with the target.

    Args:
        scene ([`Scene`]): the scene.
        target ([`SceneObject`]): the object whose attributes are named.
        attributes (`set[str]`): of `"shape"`, `"colour"`, `"size"` and `"location"`; what it lacks is left out.
        rng (`np.random.Generator`): what draws the wording: with the number or without, and how the location is put.

    Returns:
        [`Prompt`]: the prompt.
    """
    used = [name for name in ("size", "colour", "shape", "location") if name in attributes and getattr(target, name)]
    named = tuple(
        i
        for i, other in enumerate(scene.objects)
        if all(getattr(other, name) == getattr(target, name) for name in used)
    )
    noun = target.shape if "shape" in used else "object"
    words = [getattr(target, name) for name in used if name in ("size", "colour")]
    words.append(noun if len(named) == 1 else _plural(noun))
    style = rng.random()
    if style < 0.45:
        words.insert(0, NUMBERS[len(named)])
    elif style < 0.55:
        words.insert(0, "the")
    elif style < 0.65 and len(named) == 1:
        words.insert(0, "a")
    text = " ".join(words)
    if "location" in used:
        short = rng.random() < 0.3
        text += f" in the {target.location}" if short else f", located in {target.location} of the image"
    elif len(named) > 1 and target.location and rng.random() < 0.4:
        locations = dict.fromkeys(scene.objects[i].location for i in named)
        text += f", located in {', '.join(locations)} of the image"
    return Prompt(text, named, np.any([scene.objects[i].mask for i in named], axis=0))


def _plural(noun: str) -> str:
    return noun + ("es" if noun == "cross" else "s")
