"""How a run's models and checkpoints lie on the disk, by its settings."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from nearstep.checkpoint.export import ModelFolders, Role
from nearstep.checkpoint.piece_saves import PieceSaves
from nearstep.checkpoint.streamed_folders import StreamedFolders
from nearstep.config.ppo import PPOConfig
from nearstep.config.saving import shard_bytes
from nearstep.models.roles import Models
from nearstep.scale.backend import Backend
from nearstep.scale.outline import backend_in_pieces
from nearstep.training.optimizers import Learners
from nearstep.training.state import State


def model_folders(
    config: PPOConfig,
    models: Models,
    tokenizer: PreTrainedTokenizerBase,
    backend: Backend,
    card: Callable[[State, Role], str],
) -> ModelFolders:
    """What writes the models of a run."""
    size = shard_bytes(config.max_shard_size)
    assert size is not None, "the settings have checked it"
    return ModelFolders(models, tokenizer, backend, card, size)


def saves_in_pieces(config: PPOConfig, folders: ModelFolders, learners: Learners) -> PieceSaves | None:
    """What saves each process's own part; None where weights are whole, or are to be saved whole."""
    backend = backend_in_pieces(folders.backend)
    if backend is None or config.sharded_checkpoints is False:
        return None
    return PieceSaves(StreamedFolders(folders, backend), learners)
