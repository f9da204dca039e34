"""Bootstrap intervals: seeded, around the mean, as wide as theory says, and of images rather than answers."""

import math

import numpy as np
import pytest

from peft_vlsm.segmentation.evaluation.bootstrap import bootstrap_interval


def _scores(count, seed=0):
    return np.random.default_rng(seed).normal(0.7, 0.1, count)


def test_the_interval_is_as_wide_as_theory_says():
    values = _scores(400)
    low, high = bootstrap_interval(values, range(400), resamples=4000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.06)


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    trials = 200
    intervals = [bootstrap_interval(_scores(40, seed), range(40), resamples=300) for seed in range(trials)]
    held = sum(low <= 0.7 <= high for low, high in intervals) / trials
    assert 0.88 <= held <= 0.99


def test_answers_about_one_image_are_drawn_together():
    values = _scores(50)
    apart = bootstrap_interval(np.repeat(values, 9), range(450))
    together = bootstrap_interval(np.repeat(values, 9), [image for image in range(50) for _ in range(9)])
    assert together == pytest.approx(bootstrap_interval(values, range(50)))
    assert together[1] - together[0] == pytest.approx(3 * (apart[1] - apart[0]), rel=0.2)


def test_images_with_different_numbers_of_answers():
    values, images = np.array([0.0, 1.0, 1.0, 1.0]), ["a", "b", "b", "b"]
    # Two draws of two images: (a, a) in a quarter, (b, b) in a quarter, else three quarters of the answers are b's.
    assert bootstrap_interval(values, images, resamples=2000) == (0.0, 1.0)


def test_the_seed_decides_and_the_order_of_answers_within_images_does_not():
    values = _scores(30)
    images = [place // 3 for place in range(30)]
    first = bootstrap_interval(values, images, seed=1)
    assert bootstrap_interval(values, images, seed=1) == first != bootstrap_interval(values, images, seed=2)
    swapped = values.reshape(10, 3)[:, ::-1].ravel()
    assert bootstrap_interval(swapped, images, seed=1) == pytest.approx(first)


def test_equal_scores_have_no_spread():
    assert bootstrap_interval(np.full(5, 0.25), range(5)) == (0.25, 0.25)


@pytest.mark.parametrize("values, images", [([0.5], ["a"]), ([0.5, 0.9], ["a", "a"])], ids=["one", "one twice"])
def test_one_image_says_nothing_about_its_spread(values, images):
    assert all(map(math.isnan, bootstrap_interval(np.array(values), images)))
