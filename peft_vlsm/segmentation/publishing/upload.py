"""
Uploads what a fine-tuning run left to the Hub: weights, processor, card, results and pictures, in one commit.

Only files of these names go up, so checkpoints, optimizer states, pickles and whatever else lies in the folder stay.
Nothing in the folder changes but the model card.
"""

import http.client
import shlex
from pathlib import Path
from typing import cast

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.models.adapter_files import load_weights
from peft_vlsm.segmentation.models.card_mark import CARD
from peft_vlsm.segmentation.models.finetuned import RESULT_FILES, WEIGHT_FILES, quiet_loading
from peft_vlsm.segmentation.publishing.model_card import write_model_card
from peft_vlsm.segmentation.publishing.run_folder import RunFolder, read_run

PROCESSOR_FILES = (
    "added_tokens.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
# What the Hub's client raises where the network, the Hub or the storage behind it fails. The first is the root of its
# HTTP library's errors, whichever that is; a failed upload is a RuntimeError, an answer without sense a ValueError.
_FAILURES = (cast(type[Exception], HfHubHTTPError.__bases__[0]), OSError, RuntimeError, ValueError)
_ADVICE = {
    401: "the Hub does not know the token; run `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; name a repository of yours, or take a token with the right to write",
    404: "there is no such repository or revision for this token",
}


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
) -> str:
    """
    Publishes an output folder of `examples/finetune.py`, with a fresh model card; see [`write_model_card`].

    Args:
        folder (`str` or `Path`): see [`read_run`].
        repo_id (`str`): `OWNER/NAME`, or `NAME` under the token's own account. Is made where it does not exist.
        private (`bool`): whether a repository that is made is private. False leaves it to the owner's own default,
            which is public for most.
        token (`str`, *optional*): of the Hub, with the right to write. Default: HF_TOKEN, or that of `hf auth login`.
        revision (`str`, *optional*): the branch; is made where it does not exist. Default: the main one.
        endpoint (`str`, *optional*): the Hub's address. Default: HF_ENDPOINT, or https://huggingface.co.

    Returns:
        `str`: the address where the files are now.

    Raises:
        InputError: the folder holds nothing to publish, or weights that are not finite; or the token, the name, the
            network or the Hub fails. The message is one line that says where the results stay and how to push again.
    """
    folder = Path(folder)
    run = read_run(folder)
    load_weights(folder, WEIGHT_FILES[run.kind][1])
    try:
        validate_repo_id(repo_id)
        token = token or get_token()
        if token is None:
            raise InputError("there is no token; run `hf auth login`, or set HF_TOKEN")
        # Silences the client's retries: what fails in the end is the one line below.
        with quiet_loading():
            return _upload(HfApi(endpoint=endpoint, token=token), run, repo_id, private, revision)
    except _FAILURES as error:
        again = ["python", "-m", "peft_vlsm", "push", str(folder), repo_id]
        again += ["--private"] * private + ([] if revision is None else ["--revision", revision])
        raise InputError(
            f"{folder} was not pushed to {repo_id}: {_reason(error)}; the results stay in {folder}, push again with: "
            f"{shlex.join(again)}"
        ) from error


def published_files(run: RunFolder) -> list[str]:
    """The names of the files in an output folder that go up, the card among them."""
    names = (*WEIGHT_FILES[run.kind], *PROCESSOR_FILES, *RESULT_FILES)
    return [CARD, *(name for name in names if (run.folder / name).is_file())]


def _upload(api: HfApi, run: RunFolder, repo_id: str, private: bool, revision: str | None) -> str:
    # None leaves visibility to the owner's default, and False would make an organisation's repository public.
    url = api.create_repo(repo_id, private=private or None, exist_ok=True)
    repo_id = url.repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    _check_weights(run, repo_id, api.list_repo_files(repo_id, revision=revision))
    write_model_card(run.folder, repo_id)
    api.create_commit(
        repo_id,
        [CommitOperationAdd(name, run.folder / name) for name in published_files(run)],
        commit_message=f"Results of fine-tuning ({run.method})",
        revision=revision,
    )
    return str(url) if revision is None else f"{url}/tree/{revision}"


def _check_weights(run: RunFolder, repo_id: str, files: list[str]) -> None:
    """Two kinds of weights in one repository would leave it open which of them a loader takes."""
    ours = WEIGHT_FILES[run.kind]
    others = [name for names in WEIGHT_FILES.values() for name in names if name in files and name not in ours]
    if others:
        raise InputError(f"{repo_id} holds {others[0]}, another kind of model; name another repository")


def _reason(error: BaseException) -> str:
    """One line: our own words where the answer's status says enough, else the innermost error's."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        said = error.server_message or http.client.responses.get(status, "without a reason")
        return f"{_ADVICE.get(status, 'the Hub answered')} ({status}: {' '.join(said.split())})"
    words = " ".join(str(error).split()) or type(error).__name__
    checked = isinstance(error, (InputError, HFValidationError))
    return words.rstrip(".") if checked else f"the Hub cannot be reached or fails: {words}"
