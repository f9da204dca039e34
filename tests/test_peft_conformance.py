"""peft's own test suite, run for Dense and Shallow adapters: what peft promises of a tuner, ours keep."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from peft_rows import LEFT_OUT
from peft_suite import source_distribution, with_tables_replaced, write_suite

from peft_vlsm import DenseAdapterConfig, ShallowAdapterConfig

LEAST_TESTS = 120


def run_suite(folder: Path, config_cls: type) -> dict[str, str]:
    """Runs the rewritten suite for one tuner; the outcome of each test by its name."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "suite", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["-c", "pytest.ini", "-k", config_cls.__name__, "--junitxml", str(report)]
    command += [f"--deselect=suite/{name}" for names in LEFT_OUT.values() for name in names]
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert report.is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if problem is None else f"{problem.tag}: {(problem.get('message') or '').splitlines()[:1]}"
        outcomes[f"{case.get('classname')}.{case.get('name')}"] = outcome
    return outcomes


@pytest.mark.parametrize("config_cls", [DenseAdapterConfig, ShallowAdapterConfig])
def test_peft_suite(config_cls, tmp_path, record_property):
    archive = source_distribution()
    if archive is None:
        pytest.skip("peft's source distribution is out of reach: no package index answers")
    write_suite(archive, tmp_path)
    outcomes = run_suite(tmp_path, config_cls)
    passed = [name for name, outcome in outcomes.items() if outcome == "passed"]
    skipped = {name: outcome for name, outcome in outcomes.items() if outcome.startswith("skipped")}
    failed = {name: outcome for name, outcome in outcomes.items() if outcome.startswith(("failure", "error"))}
    counts = f"{len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped by peft's own rules"
    left_out = "; ".join(f"{len(names)} names {reason}" for reason, names in LEFT_OUT.items())
    record_property("summary", f"{archive.name} on {config_cls.__name__}: {counts}. Left out: {left_out}.")
    assert not failed
    assert len(passed) >= LEAST_TESTS


def test_a_table_that_is_gone_is_noticed():
    source = "A = 1\nTEST_CASES = [\n    1,\n]\nB = 2\n"
    assert with_tables_replaced(source, ("TEST_CASES",)) == "A = 1\nfrom peft_rows import TEST_CASES\nB = 2\n"
    with pytest.raises(ValueError, match="no table OTHER"):
        with_tables_replaced(source, ("OTHER",))
