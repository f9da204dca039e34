"""Fetches the test suite of the installed peft and rewrites it for the two tuners of peft_vlsm.

The suite is part of peft's source distribution, which pip downloads into a cache; nothing of it is kept in this
project. Its tables of cases are bound to the tests when a file is imported, so they are replaced in the source: each
becomes an import from `peft_rows`.
"""

import ast
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path.home() / ".cache" / "peft_vlsm"
# The tables that are replaced in each file of the suite.
TABLES = {
    "test_custom_models.py": ("TEST_CASES", "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES", "MIXED_ADAPTER_TEST_CASES"),
    "test_config.py": ("ALL_CONFIG_CLASSES",),
}
HELPERS = ("testing_common.py", "testing_utils.py")
DOWNLOAD_SECONDS = 180
# Its helper that skips a test, or the rest of one, for tuners that do not merge.
MERGING_HELPER = "def _skip_if_merging_not_supported(model_id, config_cls, config_kwargs):"
SKIP_MERGING = (
    '    if config_cls.__module__.startswith("peft_vlsm"):\n        pytest.skip("VLSM adapters do not merge")'
)


def source_distribution() -> Path | None:
    """The installed peft's source distribution, or None where no package index is in reach."""
    release = version("peft")
    archive = CACHE / f"peft-{release}.tar.gz"
    if archive.is_file():
        return archive
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        try:
            subprocess.run([*command, "--dest", folder, f"peft=={release}"], timeout=DOWNLOAD_SECONDS, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
        os.replace(Path(folder) / archive.name, archive)
    return archive


def with_tables_replaced(source: str, tables: tuple[str, ...]) -> str:
    """
    The source of a test file whose tables come from `peft_rows`.

    Args:
        source (`str`): the file's source.
        tables (`tuple[str, ...]`): the names of module-level lists.

    Raises:
        `ValueError`: if a table is not there, so that a peft that renamed it is noticed.
    """
    lines = source.splitlines(keepends=True)
    found = {
        target.id: node
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in tables
    }
    missing = sorted(set(tables) - set(found))
    if missing:
        raise ValueError(f"peft's tests have no table {missing[0]} at module level.")
    for name, node in sorted(found.items(), key=lambda item: -item[1].lineno):
        lines[node.lineno - 1 : node.end_lineno] = [f"from peft_rows import {name}\n"]
    return "".join(lines)


def write_suite(archive: Path, folder: Path) -> None:
    """Writes the rewritten suite as the package `suite` in `folder`."""
    package = folder / "suite"
    package.mkdir()
    (package / "__init__.py").touch()
    with tarfile.open(archive) as tar:
        for name in (*TABLES, *HELPERS):
            member = tar.extractfile(f"{archive.name.removesuffix('.tar.gz')}/tests/{name}")
            assert member is not None
            source = with_tables_replaced(member.read().decode(), TABLES.get(name, ()))
            # The helpers compare with a pipeline class; the package that has it is far too large for one name.
            source = source.replace("from diffusers import StableDiffusionPipeline", "StableDiffusionPipeline = ()")
            source = source.replace(MERGING_HELPER, f"{MERGING_HELPER}\n{SKIP_MERGING}", 1)
            (package / name).write_text(source)
