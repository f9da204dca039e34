"""The parts of a training run: what trains, which rows a step takes, checkpoints and records."""
