"""
COCO's run-length codes, checked before pycocotools sees them: it trusts counts, and then gives what memory holds.

A mask is read column by column: runs of 0 and 1 in turn, the first of 0.
"""

from typing import Any

from peft_vlsm.segmentation.errors import InputError


def read_rle(code: dict, height: int, width: int) -> dict[str, Any]:
    """
    Checks a run-length code.

    Args:
        code (`dict`): `size` (height, width), and `counts`: a list of run lengths, or COCO's compressed text of them.
        height (`int`): of the image, in pixels.
        width (`int`): of the image, in pixels.

    Returns:
        `dict`: `size` and `counts`: bytes, which `pycocotools.mask.decode` takes, or a list, for its `frPyObjects`.

    Raises:
        InputError: the size is not the image's, or the runs do not fill it.
    """
    size, counts = code.get("size"), code.get("counts")
    if size != [height, width]:
        raise InputError(f"segmentation has the size {size!r}, its image has height and width {[height, width]}")
    runs: Any = _decompress(counts) if isinstance(counts, str) else counts
    whole = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    if not whole or sum(runs) != height * width:
        raise InputError("segmentation has counts that are no run lengths of the whole image, or are damaged")
    return {"size": size, "counts": counts.encode("ascii") if isinstance(counts, str) else runs}


def _decompress(text: str) -> list[int]:
    """
    Five bits a character (from "0" on), the lowest first; the sixth bit says that more follow, the fifth of the last
    is the sign. From the fourth run on, the difference to the run two before is written.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return []
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs if shift == 0 else []
