"""Pixels: shapes painted into a canvas of (height, width, 3), 0 to 255; textures for backgrounds; noise."""

import numpy as np
from PIL import Image

from tiny_recipe.objects import IMAGE_SIZE

JITTER = 18.0


def paint(
    rng: np.random.Generator,
    canvas: np.ndarray,
    shape: str,
    colour: np.ndarray,
    radius: float,
    y: float,
    x: float,
    grey: bool,
) -> np.ndarray:
    """Paints one shape into the canvas, in place, and returns its mask; only a box around it is touched."""
    reach = int(radius) + 3
    top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
    box = (slice(top, int(y) + reach + 1), slice(left, int(x) + reach + 1))
    region = canvas[box]
    rows = np.arange(top, top + region.shape[0], dtype=np.float32)[:, None] - y
    columns = np.arange(left, left + region.shape[1], dtype=np.float32)[None, :] - x
    distance = _distance(shape, columns, rows, radius, rng)
    alpha = np.clip(0.5 - distance, 0, 1)[..., None]
    tint = colour + rng.uniform(-JITTER, JITTER, 1 if grey else 3)
    slope = rng.uniform(-12, 12, 2) / radius
    shaded = tint + (rows * slope[0] + columns * slope[1])[..., None]
    region += alpha * (shaded - region)
    mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    mask[box] = distance <= 0
    return mask


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """How far each pixel lies outside the shape (negative inside), in pixels; about right near the edge."""
    angle = rng.uniform(0, 2 * np.pi) if shape in ("triangle", "star", "oval") else rng.uniform(-0.15, 0.15)
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y = cosine * x + sine * y, cosine * y - sine * x
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.77 * radius) - 0.23 * radius
    if shape == "oval":
        return (np.hypot(x / radius, y / (0.55 * radius)) - 1) * 0.55 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.8 * radius
    if shape == "diamond":
        return (np.abs(x) / 0.7 + np.abs(y) - radius) * 0.57
    if shape == "cross":
        long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
        return np.maximum(long - 0.95 * radius, short - 0.28 * radius)
    corners, depth = (3, 0.5) if shape == "triangle" else (5, 0.45)
    fold = np.pi / corners
    around = np.abs((np.arctan2(y, x) + fold) % (2 * fold) - fold)
    length = np.hypot(x, y)
    inner = depth * radius
    edge_x, edge_y = inner * np.cos(fold) - radius, inner * np.sin(fold)
    outside = edge_y * (length * np.cos(around) - radius) - edge_x * length * np.sin(around)
    return outside / np.hypot(edge_x, edge_y)


def texture(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Smooth clouds, sometimes with stripes or a chequerboard, of shape (IMAGE_SIZE, IMAGE_SIZE, channels)."""
    texture = np.zeros((IMAGE_SIZE, IMAGE_SIZE, channels), dtype=np.float32)
    for cells in (3, int(rng.integers(6, 24))):
        strength = rng.uniform(0, 18)
        for channel in range(channels):
            grid = Image.fromarray(rng.normal(0, strength, (cells, cells)).astype(np.float32))
            texture[..., channel] += np.asarray(grid.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))
    pattern = rng.random()
    if pattern < 0.3:
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 20)
        along = np.arange(IMAGE_SIZE)
        phase = along[:, None] * np.sin(angle) + along[None, :] * np.cos(angle)
        texture += rng.uniform(5, 20) * np.sin(2 * np.pi * phase / period)[..., None]
    elif pattern < 0.4:
        parity = np.arange(IMAGE_SIZE) // int(rng.integers(3, 12)) % 2
        texture += rng.uniform(5, 15) * (parity[:, None] ^ parity[None, :])[..., None]
    return texture


def finish(rng: np.random.Generator, canvas: np.ndarray, grey: bool) -> np.ndarray:
    """Adds pixel noise and rounds to uint8; a greyscale image gets the same noise in its three channels."""
    noise = rng.standard_normal((*canvas.shape[:2], 1 if grey else 3), dtype=np.float32) * rng.uniform(1, 14)
    return np.clip(canvas + noise, 0, 255).astype(np.uint8)
