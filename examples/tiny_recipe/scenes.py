"""Scenes drawn from a seed and an index: coloured shapes, greyscale shapes, and greyscale phantoms.

A phantom is a set of nested wobbly regions with small spots, as a slice through a body shows them.
"""

import numpy as np

from tiny_recipe.drawing import JITTER, finish, paint, texture
from tiny_recipe.objects import BRIGHTNESSES, COLOURS, IMAGE_SIZE, KINDS, SHAPES, SIZES, Scene, SceneObject

KIND_SHARES = (0.55, 0.2, 0.25)
VERTICAL = ("top", "", "bottom")
HORIZONTAL = ("left", "", "right")
MINIMUM_CONTRAST = 60.0


def make_scene(seed: int, index: int, kind: str | None = None) -> Scene:
    """
    Draws the scene that belongs to a seed and an index.

    Args:
        seed (`int`): not negative.
        index (`int`): not negative.
        kind (`str`, *optional*): one of `KINDS`; by default drawn with `KIND_SHARES`.

    Returns:
        [`Scene`]: the same one for the same arguments.
    """
    rng = np.random.default_rng([seed, index])
    drawn = str(rng.choice(KINDS, p=KIND_SHARES))
    kind = kind or drawn
    return _draw_phantom(rng) if kind == "phantom" else _draw_shapes(rng, kind)


def _draw_shapes(rng: np.random.Generator, kind: str) -> Scene:
    palette = COLOURS if kind == "colour" else BRIGHTNESSES
    background = rng.uniform(30, 225, 3) if kind == "colour" else np.full(3, rng.uniform(10, 245))
    far = [word for word, rgb in palette.items() if np.abs(np.subtract(rgb, background)).max() > MINIMUM_CONTRAST]
    canvas = background + texture(rng, channels=3 if kind == "colour" else 1)
    objects: list[SceneObject] = []
    placed: list[tuple[float, float, float]] = []
    wanted = int(rng.integers(2, 5))
    while len(objects) < wanted:
        size = str(rng.choice(list(SIZES)))
        radius = rng.uniform(*SIZES[size])
        row, column = (int(cell) for cell in rng.integers(0, 3, 2))
        y, x = (_position_in_cell(rng, cell, radius) for cell in (row, column))
        if any(np.hypot(y - other_y, x - other_x) < radius + other + 2 for other_y, other_x, other in placed):
            # A crowded scene stays as it is, so that drawing always ends.
            wanted -= len(objects) >= 2 and rng.random() < 0.1
            continue
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(far))
        if objects and rng.random() < 0.6:
            like = objects[int(rng.integers(len(objects)))]
            shared = rng.random()
            shape = like.shape if shared < 0.6 else shape
            colour = like.colour if shared > 0.4 else colour
        mask = paint(rng, canvas, shape, np.array(palette[colour]), radius, y, x, grey=kind != "colour")
        objects.append(SceneObject(shape, colour, size, _location(row, column), mask))
        placed.append((y, x, radius))
    return Scene(kind, finish(rng, canvas, grey=kind != "colour"), objects)


def _position_in_cell(rng: np.random.Generator, cell: int, radius: float) -> float:
    width = IMAGE_SIZE / 3
    return rng.uniform(
        max(cell * width + 2 * (cell > 0), radius + 2),
        min((cell + 1) * width - 2 * (cell < 2), IMAGE_SIZE - radius - 2),
    )


def _draw_phantom(rng: np.random.Generator) -> Scene:
    """Nested regions around one centre, outermost first, with a few spots inside."""
    center = rng.uniform(-8, 8, 2) + IMAGE_SIZE / 2
    rows, columns = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE].astype(np.float32)
    rows, columns = rows - center[0], (columns - center[1]) * rng.uniform(0.85, 1.25)
    angle, length = np.arctan2(rows, columns), np.hypot(rows, columns)
    depth = int(rng.integers(2, 5))
    limits = np.sort(rng.uniform(0, 1, depth - 1))[::-1]
    radii = np.concatenate([[1.0], 0.2 + 0.62 * (limits + 0.2 * np.arange(depth - 1)[::-1]) / (1 + 0.2 * (depth - 2))])
    radii *= rng.uniform(40, 54)
    degree = (np.degrees(angle) + 180).astype(np.int64)
    turn = np.radians(np.arange(361))
    level = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.int64)
    for outside, radius in enumerate(radii):
        wobble = sum(
            rng.uniform(0, strength) * np.cos(order * turn + rng.uniform(0, 2 * np.pi))
            for order, strength in ((2, 0.08), (3, 0.06), (5, 0.05), (int(rng.integers(6, 14)), 0.1))
        )
        level += (length < (radius * (1 + wobble))[degree]) & (level == outside)
    brightnesses = list(BRIGHTNESSES)
    dark = rng.random() < 0.8
    chain = ["dark" if dark else "bright"]
    for _ in range(depth):
        chain.append(str(rng.choice([word for word in brightnesses if word != chain[-1]])))
    values = np.array([BRIGHTNESSES[word][0] + rng.uniform(-JITTER, JITTER) for word in chain])
    canvas = values[level][..., None] + np.zeros(3)
    canvas += texture(rng, channels=1) * 0.6
    spots, covered = _draw_spots(rng, canvas, level, chain)
    nouns = ["outer ring", "middle ring", "inner ring"][: depth - 1] + ["core"]
    if depth == 2:
        nouns[0] = "ring"
    elif depth == 3:
        nouns[1] = "inner ring"
    objects = [
        SceneObject(noun, chain[i + 1], "", "", (level == i + 1) & ~covered) for i, noun in enumerate(nouns)
    ] + spots
    return Scene("phantom", finish(rng, canvas, grey=True), [item for item in objects if item.mask.sum() >= 40])


def _draw_spots(
    rng: np.random.Generator, canvas: np.ndarray, level: np.ndarray, chain: list[str]
) -> tuple[list[SceneObject], np.ndarray]:
    """Spots of another brightness, each inside one region; returns them and the pixels that they cover."""
    covered = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    spots: list[SceneObject] = []
    for _ in range(int(rng.integers(0, 4))):
        size = str(rng.choice(["small", "medium"]))
        radius = rng.uniform(*SIZES[size]) * 0.8
        row, column = (int(cell) for cell in rng.integers(0, 3, 2))
        y, x = (_position_in_cell(rng, cell, radius + 12) for cell in (row, column))
        here = level[int(y), int(x)]
        if here == 0:
            continue
        trial = canvas.copy()
        word = str(rng.choice([word for word in BRIGHTNESSES if word != chain[here]]))
        mask = paint(rng, trial, "circle", np.array(BRIGHTNESSES[word]), radius, y, x, grey=True)
        if (mask & covered).any() or (level[mask] != here).any():
            continue
        canvas[...] = trial
        covered |= mask
        spots.append(SceneObject("spot", word, size, _location(row, column), mask))
    return spots, covered


def _location(row: int, column: int) -> str:
    return " ".join(word for word in (VERTICAL[row], HORIZONTAL[column]) if word) or "center"
