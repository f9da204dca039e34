"""The end-of-text token follows the host model's rule."""

import pytest
import torch

from peft_vlsm.tuners.text_states import end_of_text_positions

ROWS = [
    # with id 2 the highest id of a row counts, the first of several
    ([[5, 9, 3], [9, 1, 1], [1, 7, 7]], 2, [1, 0, 1]),
    # with another id its first occurrence, since padding may be the same id
    ([[5, 9, 3], [3, 1, 3], [1, 7, 3]], 3, [2, 0, 2]),
    # a row without it pools position 0, as the host does
    ([[5, 9, 4]], 3, [0]),
]


@pytest.mark.parametrize(("ids", "eos_token_id", "expected"), ROWS)
def test_end_of_text_positions(ids, eos_token_id, expected):
    assert end_of_text_positions(torch.tensor(ids), eos_token_id).tolist() == expected
