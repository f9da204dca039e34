"""The two members that peft's PeftType gains behave like members of its own."""

import copy
import importlib
import json
import pickle

import pytest
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import PeftType

import peft_vlsm
from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig
from peft_vlsm.tuners.registration import add_peft_type

ROWS = [
    ("VLSM_DENSE_ADAPTER", DenseAdapterConfig, "vlsm_dense_adapter_"),
    ("VLSM_SHALLOW_ADAPTER", ShallowAdapterConfig, "vlsm_shallow_adapter_"),
]


@pytest.mark.parametrize(("name", "config_cls", "prefix"), ROWS)
def test_a_type_is_a_member_of_the_enum(name, config_cls, prefix):
    member = PeftType(name)
    assert member is PeftType[name] is getattr(PeftType, name)
    assert (member.name, member.value, member) == (name, name, name)
    assert member in list(PeftType) and name in PeftType.__members__
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is member
    assert json.loads(json.dumps({"peft_type": member})) == {"peft_type": name}
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is config_cls
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == prefix


@pytest.mark.parametrize(("name", "config_cls", "prefix"), ROWS)
def test_importing_twice_changes_nothing(name, config_cls, prefix):
    before = list(PeftType)
    importlib.reload(peft_vlsm.tuners)
    importlib.reload(peft_vlsm)
    assert list(PeftType) == before
    assert add_peft_type(name) is PeftType[name]
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name)] is config_cls


@pytest.mark.parametrize(("name", "config_cls", "prefix"), ROWS)
def test_a_config_is_pickled_saved_and_loaded(name, config_cls, prefix, tmp_path):
    config = config_cls(variant="LV", adapter_dim=7, modules_to_save=["decoder"])
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)
    config.save_pretrained(tmp_path)
    for loader in (PeftConfig, config_cls):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is config_cls and loaded == config
        assert loaded.peft_type is PeftType(name)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["peft_type"] == name and content["plugin_version"] == peft_vlsm.__version__
