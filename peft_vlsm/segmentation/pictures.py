"""Results to look at: a mask over its image, a sheet of images, prompts and masks, and a matrix of scores."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

# Blue and orange: apart for colour-blind eyes too, and rare in medical images.
TRUE_COLOR = (0, 140, 255)
PREDICTED_COLOR = (255, 130, 0)
CELL = 240
GAP = 12
FONT_SIZE = 15
# Pillow's own font has no letters beyond English ones; matplotlib's has.
FONT_FILE = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@dataclass(frozen=True)
class Sample:
    """
    One row of a contact sheet.

    Args:
        image (`PIL.Image.Image`): mode RGB.
        prompt (`str`): what the model was asked for.
        true_mask (`np.ndarray` of shape `(height, width)`): boolean, of any size; it is stretched over the image.
        predicted_mask (`np.ndarray` of shape `(height, width)`): boolean, likewise.
        dice (`float`): their Dice, written under the predicted mask.
        note (`str`, defaults to ""): what else to say, above the prompt.
    """

    image: Image.Image
    prompt: str
    true_mask: np.ndarray
    predicted_mask: np.ndarray
    dice: float
    note: str = ""


def overlay(
    image: Image.Image, mask: np.ndarray, color: tuple[int, int, int] = PREDICTED_COLOR, opacity: float = 0.4
) -> Image.Image:
    """
    Lays a mask over its image: the area tinted, its border in full colour.

    Args:
        image (`PIL.Image.Image`): any mode.
        mask (`np.ndarray` of shape `(height, width)`): boolean. Another size than the image's is stretched by the
            nearest pixel.
        color (`tuple[int, int, int]`, defaults to orange): red, green and blue of 0 to 255.
        opacity (`float`, defaults to 0.4): of the tinted area, 0 to 1.

    Returns:
        `PIL.Image.Image`: mode RGB, of the image's size.
    """
    area = Image.fromarray(mask.astype(np.uint8) * 255).resize(image.size, Image.Resampling.NEAREST)
    border_width = max(1, min(image.size) // 200)
    inside = ImageOps.expand(area, border_width, fill=0)
    # A minimum over a square, in two passes of a mean: MinFilter takes minutes on a photograph.
    for radius in ((border_width, 0), (0, border_width)):
        inside = inside.filter(ImageFilter.BoxBlur(radius)).point(lambda value: 255 * (value == 255))
    inside = ImageOps.crop(inside, border_width)
    coverage = np.where(np.asarray(inside) > 0, opacity, (np.asarray(area) > 0).astype(float))
    result = image.convert("RGB")
    result.paste(color, mask=Image.fromarray(np.round(coverage * 255).astype(np.uint8)))
    return result


def contact_sheet(samples: list[Sample]) -> Image.Image:
    """
    Puts samples below each other: the image, the prompt, the true mask and the predicted mask of each, side by side.

    Args:
        samples (`list[Sample]`): at least one.

    Returns:
        `PIL.Image.Image`: mode RGB, white between the cells. Rows grow with a long prompt, which is never cut.
    """
    font = ImageFont.truetype(FONT_FILE, FONT_SIZE)
    titles = ("image", "prompt", "true mask", "predicted mask")
    pictures = [ImageOps.contain(sample.image.convert("RGB"), (CELL, CELL)) for sample in samples]
    texts = ["\n".join(_prompt_lines(sample, font)) for sample in samples]
    line_height = _text_height("Ag\nAg", font) - _text_height("Ag", font)
    heights = [
        max(picture.height + line_height, _text_height(text, font)) + GAP
        for picture, text in zip(pictures, texts, strict=True)
    ]
    top = line_height + 2 * GAP
    sheet = Image.new("RGB", (len(titles) * (CELL + GAP) + GAP, top + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    columns = [GAP + number * (CELL + GAP) for number in range(len(titles))]
    for left, title in zip(columns, titles, strict=True):
        draw.text((left, GAP), title, fill="black", font=font)
    for sample, picture, text, height in zip(samples, pictures, texts, heights, strict=True):
        sheet.paste(picture, (columns[0], top))
        draw.multiline_text((columns[1], top), text, fill="black", font=font)
        sheet.paste(overlay(picture, sample.true_mask, TRUE_COLOR), (columns[2], top))
        sheet.paste(overlay(picture, sample.predicted_mask, PREDICTED_COLOR), (columns[3], top))
        draw.text((columns[3], top + picture.height + 2), f"Dice {sample.dice:.3f}", fill="black", font=font)
        top += height
    return sheet


def heat_map(
    values: np.ndarray, rows: list[str], columns: list[str], title: str, low: float = 0.0, high: float = 1.0
) -> Image.Image:
    """
    A matrix as coloured fields, each with its number: yellow for high ones, dark blue for low ones.

    Args:
        values (`np.ndarray` of shape `(rows, columns)`): float; what is not a number stays white and says "-".
        rows (`list[str]`): what stands beside each row.
        columns (`list[str]`): what stands under each column.
        title (`str`): above the matrix.
        low (`float`, defaults to 0.0): what is coloured as darkest.
        high (`float`, defaults to 1.0): what is coloured as lightest.

    Returns:
        `PIL.Image.Image`: mode RGB; grows with the matrix and with what stands beside it.
    """
    figure = Figure(figsize=(1.5 + 1.1 * len(columns), 1.2 + 0.6 * len(rows)), dpi=120)
    axes = figure.add_subplot()
    # Names may hold a dollar sign, which would begin a formula.
    plain: dict[str, Any] = {"parse_math": False}
    axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor", **plain)
    axes.set_yticks(range(len(rows)), rows, **plain)
    axes.set_title(title, **plain)
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value < (low + high) / 2 else "black"
        axes.text(column, row, "-" if np.isnan(value) else f"{value:.3f}", color=color, ha="center", va="center")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    with Image.open(buffer) as picture:
        return picture.convert("RGB")


def _prompt_lines(sample: Sample, font: ImageFont.FreeTypeFont) -> list[str]:
    above = [*_wrap(sample.note, font, CELL), ""] if sample.note else []
    return above + _wrap(sample.prompt, font, CELL)


def _text_height(text: str, font: ImageFont.FreeTypeFont) -> int:
    canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return int(np.ceil(canvas.multiline_textbbox((0, 0), text, font=font)[3]))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines[1:] or lines
