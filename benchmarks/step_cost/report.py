"""The report: ratios to full fine-tuning and to the base model, as JSON, as tables and as a picture."""

from dataclasses import asdict
from statistics import median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .measure import FROZEN, Case, Measurement, Timing
from .settings import FULL, Arguments

SECONDS = ("seconds", "processor_seconds")
SIZES = ("peak_memory_bytes", "trainable_parameters", "saved_bytes")
MIB = 2**20


def summarise(measurements: dict[Case, list[Measurement]], args: Arguments) -> dict[str, Any]:
    """
    Sets the figures of all methods side by side.

    Args:
        measurements (`dict[Case, list[Measurement]]`): of each case one a turn, in the turns' order.
        args ([`Arguments`]): what was asked for.

    Returns:
        `dict`: what json takes. Seconds are medians over turns of the median pass of a turn; every ratio is the
        quotient of two such figures, and its range is that of the quotients within single turns.
    """
    full, base = measurements[Case(FULL)], measurements[Case(FROZEN)]
    trained = {case: turns for case, turns in measurements.items() if case.method != FROZEN}
    predicted = {case: turns for case, turns in measurements.items() if not case.gradient_checkpointing}
    every_pair, of_base = [each.every_pair for each in base], [each.prediction for each in base]
    return {
        "machine": base[0].machine,
        "settings": asdict(args),
        "total_parameters": base[0].total_parameters,
        "libraries_bytes": int(median(each.libraries_bytes for each in full)),
        "training": [{**_names(case, turns), **_training(turns, full)} for case, turns in trained.items()],
        "prediction": [
            {**_names(case, turns), **_timings([each.prediction for each in turns], of_base)}
            for case, turns in predicted.items()
        ],
        "every_pair": {"prompts": args.prompts, **_timings(every_pair, every_pair)},
        "reuse": {"prompts": args.prompts, **_timings([each.reuse for each in base], every_pair)},
    }


def _training(turns: list[Measurement], full: list[Measurement]) -> dict[str, Any]:
    found = _timings([each.training for each in turns], [each.training for each in full])
    sizes, of_full = _sizes(turns), _sizes(full)
    ratios = {name: sizes[name] / of_full[name] for name in SIZES}
    return {**found, **sizes, "ratios": {**found["ratios"], **ratios}}


def _sizes(turns: list[Measurement]) -> dict[str, int]:
    return {
        "peak_memory_bytes": int(median(each.peak_memory_bytes for each in turns)),
        "trainable_parameters": turns[0].trainable_parameters,
        "saved_bytes": turns[0].saved_bytes,
    }


def _timings(turns: list[Timing], reference: list[Timing]) -> dict[str, Any]:
    """The seconds of a pass, and their ratios to the reference's."""
    found: dict[str, Any] = {"ratios": {}, "ratio_ranges": {}, "turns": {}}
    for name in SECONDS:
        own = [median(getattr(timing, name)) for timing in turns]
        others = [median(getattr(timing, name)) for timing in reference]
        quotients = [seconds / other for seconds, other in zip(own, others, strict=True)]
        found[name] = median(own)
        found["turns"][name] = own
        found["ratios"][name] = median(own) / median(others)
        found["ratio_ranges"][name] = [min(quotients), max(quotients)]
    return found


def _names(case: Case, turns: list[Measurement]) -> dict[str, Any]:
    return {**asdict(case), "variant": turns[0].variant, "adapter_dim": turns[0].adapter_dim}


def write_tables(results: dict[str, Any]) -> str:
    """What [`summarise`] gave, as Markdown."""
    machine, settings = results["machine"], results["settings"]
    model = settings["model_name_or_path"] or settings["model"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "peft", "peft_vlsm"))
    lines = [
        f"# What each method costs beside full fine-tuning: {model}",
        "",
        f"- Machine: {machine['device']}, {machine['cores']} cores, {machine['threads']} threads used, "
        f"{machine['system']}; Python {machine['python']}, {versions}; {machine['date']}, "
        f"commit {machine['git_commit']}.",
        f"- Model: {results['total_parameters']:,} parameters, random weights. A batch: "
        f"{settings['per_device_train_batch_size']} images of {settings['image_size']} pixels a side with a prompt of "
        f"{settings['prompt_tokens']} tokens each. Training in precision {machine['mixed_precision']}.",
        f"- {settings['repeats']} turns; in each, every method is measured once, in a process of its own, by the "
        f"median of {settings['steps']} timed passes after {settings['warmup_steps']} not timed. Seconds are "
        "medians over turns. In brackets: the lowest and the highest ratio within one turn.",
        "- Seconds are those on the clock. Processor seconds are what the process computed on the CPU, whatever else "
        "ran on the machine: where it was shared, they are the surer figure; on a GPU they say little.",
        _memory_line(results),
        "",
        "## A training step",
        "",
        "| method | seconds / full | processor seconds / full | peak memory / full | trainable / full | saved / full "
        "| seconds | processor seconds | peak MiB | trainable | saved MiB |",
        "| --- " * 11 + "|",
        *map(_training_line, results["training"]),
        "",
        "## Prediction",
        "",
        "The same batch without gradients, in float32. Decoder and full are the base model with other weights: how "
        "far they are from 1 is the noise.",
        "",
        "| method | seconds / base model | processor seconds / base model | seconds | processor seconds |",
        "| --- " * 5 + "|",
        *(_line(label(row), *_ratios(row), *_seconds(row)) for row in results["prediction"]),
        "",
        "## Several prompts on one image",
        "",
        f"{results['reuse']['prompts']} prompts on one image, by the base model.",
        "",
        "| the image is embedded | seconds / for each prompt | processor seconds / for each prompt | seconds | "
        "processor seconds |",
        "| --- " * 5 + "|",
        _line("for each prompt", *_ratios(results["every_pair"]), *_seconds(results["every_pair"])),
        _line("once", *_ratios(results["reuse"]), *_seconds(results["reuse"])),
    ]
    return "\n".join(lines) + "\n"


def _memory_line(results: dict[str, Any]) -> str:
    if results["machine"]["device_type"] == "cuda":
        return "- Peak memory: what torch allocated on the GPU at most (`torch.cuda.max_memory_allocated`)."
    return (
        "- Peak memory: of the whole process (`ru_maxrss`), of which Python and its libraries take "
        f"{results['libraries_bytes'] / MIB:,.0f} MiB before there is a model."
    )


def _training_line(row: dict[str, Any]) -> str:
    return _line(
        label(row),
        *_ratios(row),
        *(f"{row['ratios'][name]:.3g}" for name in SIZES),
        *_seconds(row),
        f"{row['peak_memory_bytes'] / MIB:,.0f}",
        f"{row['trainable_parameters']:,}",
        f"{row['saved_bytes'] / MIB:,.2f}",
    )


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _ratios(row: dict[str, Any]) -> list[str]:
    ranges = row["ratio_ranges"]
    return [f"{row['ratios'][name]:.2f} ({ranges[name][0]:.2f} to {ranges[name][1]:.2f})" for name in SECONDS]


def _seconds(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:.4g}" for name in SECONDS]


def label(row: dict[str, Any]) -> str:
    """What a row of the results is called in tables and pictures."""
    setting = " ".join(str(row[name]) for name in ("variant", "adapter_dim") if row[name] is not None)
    method = f"{row['method']} {setting}".strip()
    return f"{method}, checkpointed" if row["gradient_checkpointing"] else method


def draw_ratios(results: dict[str, Any]) -> Figure:
    """Bars of the ratios, a chart a figure; lines over the bars show the range over turns."""
    rows, predicted, machine = results["training"], results["prediction"], results["machine"]
    # On a CPU that others use too, the seconds on the clock say little.
    seconds, told = ("seconds", "seconds") if machine["device_type"] == "cuda" else (SECONDS[1], "processor seconds")
    figure = Figure(figsize=(15, 1.6 + 0.36 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    charts = figure.subplots(1, 4)
    panels = (
        (rows, seconds, f"{told} a training step / full"),
        (rows, "peak_memory_bytes", "peak memory / full"),
        (rows, "saved_bytes", "saved bytes / full"),
        (predicted, seconds, f"{told} of prediction / base"),
    )
    for chart, (shown, name, title) in zip(charts, panels, strict=True):
        _bars(chart, shown, name, title)
    charts[2].set_xscale("log")
    for chart in charts[1:3]:
        chart.tick_params(labelleft=False)
    figure.suptitle(f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}")
    return figure


def _bars(chart: Any, rows: list[dict[str, Any]], name: str, title: str) -> None:
    places = range(len(rows))
    chart.barh(places, [row["ratios"][name] for row in rows], color="#008cff")
    chart.set_yticks(places, [label(row) for row in rows])
    chart.invert_yaxis()
    chart.axvline(1, color="0.4", linewidth=0.8)
    chart.set_title(title, fontsize=10)
    for place, row in zip(places, rows, strict=True):
        text = f" {row['ratios'][name]:.3g}"
        chart.annotate(text, (0, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        if name in row["ratio_ranges"]:
            chart.plot(row["ratio_ranges"][name], [place, place], color="#ff8200", linewidth=2)
