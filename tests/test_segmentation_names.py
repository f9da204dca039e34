"""The names of `peft_vlsm.segmentation`: each is there, and none is loaded before it is asked for."""

import subprocess
import sys

import evaluate
import pytest

import peft_vlsm.segmentation as segmentation


@pytest.mark.parametrize("name", segmentation.__all__)
def test_each_name_is_there(name):
    assert getattr(segmentation, name).__name__ == name
    assert getattr(segmentation, name).__module__.startswith("peft_vlsm.segmentation.")


def test_the_metric_is_the_one_of_the_library_evaluate():
    assert issubclass(segmentation.SegmentationMetric, evaluate.Metric)


def test_other_names_are_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Metrics'"):
        segmentation.Metrics  # noqa: B018


def test_importing_the_package_loads_no_metrics():
    code = "import sys, peft_vlsm; print([name for name in ('evaluate', 'pycocotools') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
