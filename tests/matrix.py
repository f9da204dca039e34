"""`make test-matrix`: the tests with the oldest and the newest peft and transformers, each pair in an environment.

The other packages come from constraints.txt, but for those that an older transformers wants older too.
"""

import os
import subprocess
import sys
import venv
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-matrix"
# None is the newest that pyproject.toml allows.
PEFT, TRANSFORMERS = ("0.19.1", None), ("4.57.6", None)
FREE = {"peft", "transformers", "huggingface_hub", "tokenizers", "datasets", "accelerate", "fsspec"}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    constraints = FOLDER / "constraints.txt"
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    constraints.write_text("\n".join(pin for pin in pins if pin.partition("==")[0] not in FREE))
    verdicts = [run_pair(peft, transformers, constraints) for peft, transformers in product(PEFT, TRANSFORMERS)]
    print("\n".join(verdicts))
    sys.exit(any("failed" in verdict for verdict in verdicts))


def run_pair(peft: str | None, transformers: str | None, constraints: Path) -> str:
    """Installs a pair and runs the tests on it; returns one line that names the pair and says how it went."""
    wanted = [
        f"{name}=={version}" if version else name
        for name, version in zip(("peft", "transformers"), (peft, transformers), strict=True)
    ]
    environment = FOLDER / "-".join(wanted).replace("==", "-")
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--constraint", constraints, *wanted]
    subprocess.run([*install, "--editable", f"{ROOT}[test-core]"], check=True)
    told = "import peft, transformers as t; print(f'peft {peft.__version__}, transformers {t.__version__}')"
    pair = subprocess.run(
        [python, "-W", "ignore", "-c", told], check=True, capture_output=True, text=True
    ).stdout.strip()
    print(f"== {pair}", flush=True)
    tests = [python, "-m", "pytest", "-n", "2", "-q", "-o", f"cache_dir={environment}/.pytest_cache"]
    failed = subprocess.run(tests, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    return f"{pair}: {'failed' if failed else 'passed'}"


if __name__ == "__main__":
    main()
