"""How a finished model is uploaded."""

from pathlib import Path


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload a model folder to the hub, making the repository if it is not there; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repository, exist_ok=True)
    api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Trained with nearstep")
    return str(address)
