"""The rows that peft's own test suite runs for Dense and Shallow adapters, in the form of its tables.

Left out of its toy models: nn.Conv1d to Conv3d keep their features in the second dimension, and an adapter works on
the last; MlpUsingParameters has bare parameters in place of modules. Shallow also leaves out embeddings, whose input
is token ids.
"""

from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig

# Tests that are left out by name, and why.
LEFT_OUT = {
    "merge, which test_families.py shows to be refused": (
        "test_custom_models.py::TestPeftCustomModel::test_merge_layers",
        "test_custom_models.py::TestPeftCustomModel::test_safe_merge",
        "test_custom_models.py::TestPeftCustomModel::test_disable_adapters_with_merging",
        "test_custom_models.py::TestPeftCustomModel::test_delete_merged_adapter",
        "test_custom_models.py::TestMultipleActiveAdapters::test_multiple_active_adapters_merge_and_unmerge",
        "test_custom_models.py::TestMultipleActiveAdapters::test_merge_layers_multi",
        "test_custom_models.py::TestMultipleActiveAdapters::test_sequential_merge",
        "test_custom_models.py::TestMultipleActiveAdapters::test_unmerge_after_sequential_merge",
        "test_custom_models.py::TestMixedAdapterBatches::test_mixed_adapter_batches_merged_raises",
    ),
    "need the Hub": (
        "test_config.py::TestPeftConfig::test_from_pretrained",
        "test_config.py::TestPeftConfig::test_save_pretrained_with_runtime_config",
    ),
    "give layers_to_transform without target_modules, an error here": (
        "test_config.py::TestPeftConfig::test_config_layers_to_transform_index_zero",
    ),
}

# Targets of both tuners, for each of peft's toy models.
TARGETS = (
    ("MLP", {"target_modules": "lin0"}),
    ("MLP", {"target_modules": ["lin0"]}),
    ("MLP", {"target_modules": ["lin1"]}),
    ("MLP", {"target_modules": ["lin0", "lin1"]}),
    ("MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP", {"target_modules": ["lin0"], "adapter_dim": 3}),
    ("MLP2", {"target_modules": ["lin0", "lin1"]}),
    ("MLP_LayerNorm", {"target_modules": ["layernorm1", "lin1"]}),
    ("EmbConv1D", {"target_modules": ["conv1d"]}),
)
DENSE_TARGETS = (
    ("EmbConv1D", {"target_modules": ["emb"]}),
    ("EmbConv1D", {"target_modules": ["emb", "conv1d"]}),
    ("MHA", {"target_modules": ["mha"]}),
    ("MHA", {"target_modules": ["mha", "lin0"]}),
)


def _case(config_cls: type, model: str, fields: dict) -> tuple:
    words = " ".join(f"{name}={value}" for name, value in fields.items())
    return (f"{config_cls.__name__} {model} {words}", model, config_cls, fields)


TEST_CASES = [
    *(_case(config_cls, *row) for config_cls in (DenseAdapterConfig, ShallowAdapterConfig) for row in TARGETS),
    *(_case(DenseAdapterConfig, *row) for row in DENSE_TARGETS),
]

MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [
    (
        f"{config_cls.__name__} {kind}",
        "vlsm",
        config_cls,
        {"target_modules": ["lin0"], "init_weights": False},
        {"target_modules": [second], "init_weights": False},
    )
    for config_cls in (DenseAdapterConfig, ShallowAdapterConfig)
    for kind, second in (("same", "lin0"), ("different", "lin1"))
]

MIXED_ADAPTER_TEST_CASES = [
    (
        f"{config_cls.__name__} {kind}",
        config_cls(target_modules=["lin0"], init_weights=False),
        config_cls(target_modules=second, init_weights=False, **fields),
    )
    for config_cls in (DenseAdapterConfig, ShallowAdapterConfig)
    for kind, second, fields in (
        ("same", ["lin0"], {}),
        ("different layers", ["lin1"], {}),
        ("one of more layers", ["lin0", "lin1"], {}),
        ("other width", ["lin0"], {"adapter_dim": 5}),
    )
]

ALL_CONFIG_CLASSES = ((DenseAdapterConfig, {}), (ShallowAdapterConfig, {}))
