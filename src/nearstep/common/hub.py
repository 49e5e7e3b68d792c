"""How a finished model is uploaded, and whether that will be possible."""

from pathlib import Path

from nearstep.common.attempts import reason
from nearstep.common.errors import ConfigError, TrainingError


def check_hub(repository: str) -> None:
    """Open the repository as the upload will need it, making it if it is not there.

    Raises ConfigError with the reason: offline mode, no network, no token, no right to write, a name that is none.
    """
    from huggingface_hub import HfApi, constants, errors

    api = HfApi()
    try:
        if constants.is_offline_mode():
            raise errors.OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
        api.whoami()  # without a token this says so at once
        address = api.create_repo(repository, exist_ok=True)
        api.auth_check(address.repo_id, write=True)
    except Exception as error:  # of the network, of the hub, of names: each says what it is
        raise ConfigError(
            f"push_to_hub: the run could not be uploaded to {repository!r}: {reason(error)}. Log in (hf auth login "
            "or HF_TOKEN), set hub_model_id to a repository of yours, or leave push_to_hub out"
        ) from error


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload a model folder to the hub; returns its address. Raises TrainingError that says where the model lies."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Trained with nearstep")
    except Exception as error:  # whatever it was, the run is done and its models are saved
        raise TrainingError(
            f"the upload to {repository!r} failed: {reason(error)}. The run is done, and the model lies in {folder}: "
            f"hf upload {repository} {folder}"
        ) from error
    return str(address)
