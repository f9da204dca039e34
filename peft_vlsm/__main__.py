"""
The command line.

    python -m peft_vlsm inspect MODEL_OR_ADAPTER    tells where adapters go, or what a saved one is
    python -m peft_vlsm push OUT REPO               publishes an output folder of finetune.py on the Hub
"""

import argparse
from pathlib import Path

from peft_vlsm.segmentation.arguments import OneLineParser
from peft_vlsm.segmentation.errors import InputError, exit_on_input_error
from peft_vlsm.segmentation.models.finetuned import quiet_loading
from peft_vlsm.segmentation.publishing.upload import push_folder
from peft_vlsm.tuners.inspection import (
    ADAPTER_CONFIG,
    METHODS,
    AdapterReport,
    ModelReport,
    inspect_adapter,
    inspect_model,
)
from peft_vlsm.tuners.targets import RECORD_KEYS, without_base_layer

SETTINGS = ("method", "variant", "layers", "adapter_dim")


def main(argv: list[str] | None = None) -> None:
    """
    Runs a command.

    Args:
        argv (`list[str]`, *optional*): the command and its flags. Default: the command line's.

    Raises:
        SystemExit: with status 2 after one line on stderr, if what was given cannot be inspected or pushed.
    """
    exit_on_input_error(lambda: _run(argv))()


def _run(argv: list[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.command == "push":
        url = push_folder(arguments.folder, arguments.repo, private=arguments.private, revision=arguments.revision)
        print(f"pushed {arguments.folder} to {url}")
    else:
        _inspect(arguments)


def _inspect(arguments: argparse.Namespace) -> None:
    given = {name: getattr(arguments, name) for name in SETTINGS if getattr(arguments, name) is not None}
    try:
        with quiet_loading():
            if not (Path(arguments.what) / ADAPTER_CONFIG).is_file():
                lines = model_lines(inspect_model(arguments.what, **given))
            elif given:
                raise InputError(
                    f"--{next(iter(given))} is for models, and {arguments.what} is an adapter; leave it out"
                )
            else:
                lines = adapter_lines(inspect_adapter(arguments.what))
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error
    print("\n".join(lines))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m peft_vlsm",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser(
        "inspect",
        allow_abbrev=False,
        help="where adapters go in a model, or what a saved adapter is; loads no weights",
        description="For a model: where adapters could go, and what they cost. For an adapter: what it is.",
    )
    inspect.add_argument("what", metavar="MODEL_OR_ADAPTER", help="a folder, for a model also a name on the Hub")
    inspect.add_argument("--method", choices=tuple(METHODS), help="default: dense")
    inspect.add_argument("--variant", help="letters out of V, L and C; default: all that the model can have")
    inspect.add_argument("--layers", choices=("paper", "all"), help="default: paper")
    inspect.add_argument("--adapter_dim", type=int, help="width of the bottleneck; default: 64 dense, 512 shallow")
    push = commands.add_parser(
        "push",
        allow_abbrev=False,
        help="publish an output folder of finetune.py on the Hub",
        description="Uploads weights, processor, model card, results and pictures in one commit; nothing else.",
    )
    push.add_argument("folder", metavar="OUT", help="an output folder of finetune.py")
    push.add_argument("repo", metavar="REPO", help="OWNER/NAME on the Hub; is made where it does not exist")
    push.add_argument("--private", action="store_true", help="where the repository is made, make it private")
    push.add_argument("--revision", help="a branch; is made where it does not exist; default: the main one")
    return parser


def model_lines(report: ModelReport) -> list[str]:
    """The table of a model's places, and the sums below it."""
    rows = [("", "module", "shape", "parameters", "reaches", "adapter")]
    for place in report.places:
        shape, count = f"{place.hidden_size} -> {place.width}", f"{place.parameters:,}" if place.parameters else "-"
        rows.append((place.letter, place.module, shape, count, _answer(place.reaches), _answer(place.adapted)))
    letter, module, shape, count, reaches, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    table = [
        f"{row[0]:{letter}}  {row[1]:{module}}  {row[2]:>{shape}}  {row[3]:>{count}}  {row[4]:{reaches}}  {row[5]}"
        for row in rows
    ]
    config = report.config
    settings = f"variant={config.variant!r}, layers={config.layers!r}, adapter_dim={config.adapter_dim}"
    return [
        f"{report.name} with {type(config).__name__}({settings})",
        *table,
        *(f"no {letter}: {reason}" for letter, reason in report.unavailable.items()),
        f"parameters of the model: {report.total - report.trainable:,}, with the adapters {report.total:,}",
        f"trainable parameters: {report.trainable:,} ({report.trainable / report.total:.2%})",
    ]


def adapter_lines(report: AdapterReport) -> list[str]:
    """What a saved adapter is, a line for each fact, then the modules where it stands."""
    config, saved = report.config, report.config.resolved_modules or {}
    widths = [f"adapter_dim {config.adapter_dim}" if config.reduction_factor is None else ""]
    widths += [f"reduction_factor {config.reduction_factor:g}" if config.reduction_factor is not None else ""]
    widths += [f"cond_adapter_dim {config.cond_adapter_dim}" if "C" in (config.variant or "") else ""]
    widths += [f"adapter_dim_pattern {config.adapter_dim_pattern}" if config.adapter_dim_pattern else ""]
    targets = config.target_modules
    facts = {
        "base model": config.base_model_name_or_path or "not recorded",
        "peft_type": getattr(config.peft_type, "value", config.peft_type),
        "variant": config.variant,
        "target_modules": targets if isinstance(targets, str) or targets is None else ", ".join(sorted(targets)),
        "widths": ", ".join(width for width in widths if width),
        "layers": config.layers,
        "plugin_version": config.plugin_version,
        "weights": f"{report.size:,} bytes ({_readable(report.size)})",
        "tensors": f"{report.tensors:,}, with {report.parameters:,} parameters",
        "modules_to_save": ", ".join(map(without_base_layer, config.modules_to_save or ())),
        "unknown fields": ", ".join(report.unknown_fields),
        "modules": f"{sum(map(len, saved.values()))}" if saved else "not recorded",
    }
    keys = [*(key for key in RECORD_KEYS if key in saved), *sorted(set(saved) - set(RECORD_KEYS))]
    return [
        *(f"{name + ':':17}{value}" for name, value in facts.items() if value),
        *(f"  {key}  {place}" for key in keys for place in saved[key]),
    ]


def _answer(value: bool) -> str:
    return "yes" if value else "no"


def _readable(size: int) -> str:
    if size < 1024:
        return f"{size} B"
    return f"{size / 1024:.1f} KiB" if size < 1024**2 else f"{size / 1024**2:.1f} MiB"


if __name__ == "__main__":
    main()
