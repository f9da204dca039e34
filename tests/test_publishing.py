"""What is pushed arrives whole and alone, loads again; a push that fails loses nothing and says how to repeat it."""

import json
import os
import re
import subprocess
import sys
import time

import huggingface_hub
import pytest
import torch
from builders import forget_accelerator, load_example, run_example, write_dataset
from hub_server import DROP, OWNER, TOKEN, serve_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from packaging.version import Version
from PIL import Image
from run_folders import METHODS, write_run
from safetensors.torch import load_file, save_file

from peft_vlsm.__main__ import main
from peft_vlsm.segmentation.data.transforms import image_to_tensor, prompts_to_tensors
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.finetuned import WEIGHT_FILES, load_finetuned
from peft_vlsm.segmentation.publishing.upload import push_folder

# The Hub client's own way to store a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
REPO = f"{OWNER}/polyps"
# Where nobody listens.
CLOSED = "http://127.0.0.1:9"
# Runs the snippet of a pushed card as it stands, then asks the model about given tensors.
LOAD_AGAIN = """
import re, sys, torch
from huggingface_hub import ModelCard
for number, repo in enumerate(sys.argv[1:]):
    code = re.search(r"```python\\n(.*?)```", ModelCard.load(repo).text, re.DOTALL)[1]
    names = {}
    exec(code, names)
    with torch.no_grad():
        torch.save(names["model"](**torch.load("inputs.pt")).logits, f"logits_{number}.pt")
"""


@pytest.fixture(autouse=True)
def client(monkeypatch, tmp_path):
    """A Hub client without an account, without Xet, and with the right token in the environment."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The client waits up to eight seconds between its attempts.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    disable_progress_bars()
    if Version(huggingface_hub.__version__) < Version("1"):
        # The older client keeps the sessions of other tests, offline ones too.
        huggingface_hub.utils._http.reset_sessions()
    yield
    enable_progress_bars()


@pytest.fixture
def hub(monkeypatch):
    with serve_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def run(base, tmp_path):
    """An output folder with what must never go up beside the results."""

    def write(method="dense"):
        folder = write_run(tmp_path / method, base, method)
        for name in (
            "step_20/optimizer.bin",
            "step_20/adapter_model.safetensors",
            "scheduler.pt",
            "x.pkl",
            "notes.txt",
        ):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"private")
        return folder

    return write


def contents(folder):
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if name.name != "README.md"}


@pytest.mark.parametrize("method", METHODS)
def test_a_push_is_one_commit_of_the_results_alone(hub, run, method):
    folder = run(method)
    before = contents(folder)
    assert push_folder(folder, REPO) == f"{hub.endpoint}/{REPO}"
    first, pushed = hub.repositories[REPO].branches["main"]
    kind = method if method in WEIGHT_FILES else "adapter"
    shared = {"README.md", "all_results.json", "samples.png", "curves.png", "tokenizer.json", "tokenizer_config.json"}
    rest = pushed.brought - shared - set(WEIGHT_FILES[kind])
    assert first.files == {} and pushed.brought >= shared | set(WEIGHT_FILES[kind])
    assert rest <= {
        "processor_config.json",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
    }
    assert all(data == (folder / name).read_bytes() for name, data in pushed.files.items())
    assert contents(folder) == before
    assert b'name = "me/polyps"' in pushed.files["README.md"]
    assert not hub.repositories[REPO].private


def test_an_unchanged_folder_makes_no_second_commit_and_a_changed_one_does(hub, run):
    folder = run()
    push_folder(folder, REPO)
    push_folder(folder, REPO)
    assert len(hub.repositories[REPO].branches["main"]) == 2
    (folder / "all_results.json").write_text(json.dumps({"test_dice": 0.9}))
    push_folder(folder, REPO)
    assert {"README.md", "all_results.json"} <= hub.repositories[REPO].branches["main"][2].brought
    assert b"0.9000" in hub.repositories[REPO].branches["main"][2].files["README.md"]


def test_private_and_a_name_without_owner_and_a_token_of_ones_own(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    url = push_folder(run(), "polyps", private=True, token=TOKEN, endpoint=hub.endpoint)
    assert url == f"{hub.endpoint}/{REPO}" and hub.repositories[REPO].private


def test_a_revision_is_a_branch(hub, run):
    for _ in range(2):
        assert push_folder(run(), REPO, revision="trial") == f"{hub.endpoint}/{REPO}/tree/trial"
    branches = hub.repositories[REPO].branches
    assert branches["main"][-1].files == {} and "adapter_model.safetensors" in branches["trial"][-1].files


def test_what_was_pushed_loads_by_name_and_gives_equal_logits(hub, run, tmp_path):
    methods = ("dense", "decoder", "full")
    folders = [run(method) for method in methods]
    image = Image.new("RGB", (40, 36), (200, 30, 90))
    image.save(tmp_path / "image.png")
    expected = []
    for method, folder in zip(methods, folders, strict=True):
        push_folder(folder, f"me/{method}")
        model, processor = load_finetuned(folder)
        inputs = {"pixel_values": image_to_tensor(processor, image)[None], **prompts_to_tensors(processor, ["disc"])}
        with torch.no_grad():
            expected.append(model(**inputs).logits)
    torch.save(inputs, tmp_path / "inputs.pt")
    # The Hub is read as someone else would: without token, and with an empty cache.
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "cache")}
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | own
    command = [sys.executable, "-W", "ignore", "-c", LOAD_AGAIN, *(f"me/{method}" for method in methods)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, logits in enumerate(expected):
        assert torch.equal(torch.load(tmp_path / f"logits_{number}.pt"), logits)
    assert len({logits.sum().item() for logits in expected}) == 3


@pytest.mark.parametrize(
    ("failures", "repo", "message"),
    [
        ({}, "you/polyps", "the token may not write there; name a repository of yours"),
        ({}, "not a name", "Repo id must use alphanumeric chars"),
        ({}, "me/a/b", "Repo id must be in the form"),
        ({"create": 401}, REPO, "the Hub does not know the token; run `hf auth login`, or set HF_TOKEN (401"),
        ({"create": 500}, REPO, "the Hub answered (500: told to fail)"),
        ({"create": DROP}, REPO, "the Hub cannot be reached or fails: "),
        ({"preupload": 403}, REPO, "the token may not write there"),
        ({"preupload": 404}, REPO, "there is no such repository or revision"),
        ({"preupload": 502}, REPO, "the Hub answered (502: told to fail)"),
        ({"store": 403}, REPO, "the token may not write there"),
        ({"store": 500}, REPO, "the Hub "),
        ({"store": DROP}, REPO, "the Hub cannot be reached or fails: "),
        ({"commit": 500}, REPO, "the Hub answered (500: told to fail)"),
        ({"commit": 503}, REPO, "the Hub answered (503: told to fail)"),
        ({"commit": DROP}, REPO, "the Hub cannot be reached or fails: "),
    ],
    ids=str,
)
def test_a_failing_push_keeps_the_results_and_says_how_to_repeat_it(hub, run, failures, repo, message):
    folder = run()
    before = contents(folder)
    hub.failures.update(failures)
    with pytest.raises(InputError) as failure:
        push_folder(folder, repo, private=True, revision="trial")
    line = str(failure.value)
    assert line.startswith(f"{folder} was not pushed to {repo}: {message}") and "\n" not in line
    quoted = f"'{repo}'" if " " in repo else repo
    again = f"python -m peft_vlsm push {folder} {quoted} --private --revision trial"
    assert line.endswith(f"; the results stay in {folder}, push again with: {again}")
    assert contents(folder) == before and (folder / "README.md").is_file()
    assert all(commit.files == {} for stored in hub.repositories.values() for commit in stored.branches["main"])
    hub.failures.clear()
    push_folder(folder, REPO)
    assert "adapter_model.safetensors" in hub.repositories[REPO].branches["main"][-1].files


def test_without_a_network_or_a_token_the_message_is_the_same(hub, run, monkeypatch):
    folder = run()
    with pytest.raises(InputError, match="not pushed to me/polyps: the Hub cannot be reached or fails: .*push again"):
        push_folder(folder, REPO, endpoint=CLOSED)
    with pytest.raises(InputError, match="the Hub does not know the token; .* push again with: python -m peft_vlsm"):
        push_folder(folder, REPO, token="hf_wrong")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="there is no token; run `hf auth login`, or set HF_TOKEN; the results stay"):
        push_folder(folder, REPO)
    assert hub.repositories == {}


def test_a_card_that_someone_wrote_goes_up_as_it_is_and_the_hub_judges_it(hub, run):
    folder = run()
    (folder / "README.md").write_text("---\nbase_model: /home/me/base\n---\n# Mine\n")
    with pytest.raises(InputError, match='"base_model" is no model id'):
        push_folder(folder, REPO)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    push_folder(folder, REPO)
    assert hub.repositories[REPO].branches["main"][-1].files["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"


def test_another_kind_of_weights_in_the_repository_is_refused(hub, run):
    push_folder(run("full"), REPO)
    with pytest.raises(
        InputError, match="me/polyps holds config.json, another kind of model; name another repository"
    ):
        push_folder(run("dense"), REPO)
    assert len(hub.repositories[REPO].branches["main"]) == 2


def test_another_kind_of_weights_in_another_branch_is_no_hindrance(hub, run):
    push_folder(run("full"), REPO, revision="whole")
    push_folder(run("dense"), REPO)
    with pytest.raises(InputError, match="me/polyps holds config.json, another kind of model"):
        push_folder(run("dense"), REPO, revision="whole")


def test_a_repository_is_as_private_as_its_owner_wants(hub, run, monkeypatch):
    """None leaves it to the owner's default; False would make an organisation's repository public."""
    create, asked = HfApi.create_repo, []

    def noted(self, *args, **settings):
        asked.append(settings["private"])
        return create(self, *args, **settings)

    monkeypatch.setattr(HfApi, "create_repo", noted)
    push_folder(run(), REPO)
    push_folder(run(), REPO, private=True)
    assert asked == [None, True]


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_finite_stay_here(hub, run, method):
    folder = run(method)
    file = folder / WEIGHT_FILES[method if method in WEIGHT_FILES else "adapter"][1]
    weights = load_file(file)
    name = min(weights)
    weights[name].view(-1)[0] = float("inf")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{re.escape(name)} are not finite") as error:
        push_folder(folder, REPO)
    assert str(folder) in str(error.value) and not hub.repositories


def test_the_command(hub, run, capsys):
    folder = run()
    main(["push", str(folder), REPO, "--private", "--revision", "v1"])
    assert capsys.readouterr().out == f"pushed {folder} to {hub.endpoint}/{REPO}/tree/v1\n"
    assert hub.repositories[REPO].private and len(hub.repositories[REPO].branches["v1"]) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["OUT", REPO], "the Hub answered (500: told to fail); the results stay in "),
        (["OUT"], "the following arguments are required: REPO"),
        (["OUT", REPO, "--public"], "unrecognized arguments: --public"),
        (["nowhere", REPO], "nowhere holds no fine-tuned model: none of adapter_config.json, "),
    ],
    ids=["hub", "no repo", "flag", "folder"],
)
def test_a_failing_command_is_one_line_with_status_2(hub, run, capsys, argv, message):
    hub.failures["commit"] = 500
    folder = str(run())
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(["push", *(folder if word == "OUT" else word for word in argv)])
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert exit_.value.code == 2 and captured.out == ""
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]


@pytest.fixture
def finetune(base, tmp_path):
    """Runs finetune.py with --push_to_hub; returns its output folder."""
    data = write_dataset(tmp_path / "data", {"train": 2, "val": 1, "test": 1})

    def finetune(*flags):
        forget_accelerator()
        places = ("--model_name_or_path", base, "--data_dir", data, "--output_dir", tmp_path / "out")
        few = ("--max_train_steps", 1, "--adapter_dim", 2, "--push_to_hub", "True", "--hub_model_id", REPO)
        run_example(load_example("finetune"), *places, *few, *flags)

    finetune.out = tmp_path / "out"
    return finetune


def test_a_run_publishes_its_results(hub, finetune, capsys):
    finetune("--hub_private_repo", "True")
    assert f"published at {hub.endpoint}/{REPO}" in capsys.readouterr().out
    repository = hub.repositories[REPO]
    names = set(repository.at("main").files)
    assert {"README.md", "adapter_model.safetensors", "tokenizer.json", "all_results.json", "samples.png"} <= names
    assert repository.private and not any(name.startswith("step_") for name in names)


def test_a_run_whose_push_fails_keeps_its_results(monkeypatch, finetune, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    with pytest.raises(SystemExit) as stop:
        finetune()
    line = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and f"python -m peft_vlsm push {finetune.out} {REPO}" in line
    load_finetuned(finetune.out)
    assert (finetune.out / "all_results.json").exists()
