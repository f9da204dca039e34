"""The README's ten lines run as they stand."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_ten_lines(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Ten lines\n\n```python\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code[1], "README.md", "exec"), names)
    assert sorted(path.name for path in (tmp_path / "my_adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert type(names["model"]).__name__ == "PeftModel"
