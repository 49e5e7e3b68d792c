"""How a model folder is written: weights first, beside its place and then moved into it, so that it is never half a
model; and how all that could fail there is tried before a run."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.attempts import Attempt
from nearstep.common.errors import ModelError, TrainingError
from nearstep.common.whole_folder import whole_folder
from nearstep.models.adapters import adapters_of, is_adapted
from nearstep.models.roles import inner_model

ADVICE = "The run would train, and then lose this at its end: mend it first."
SHARD_BYTES = 5 * 10**9  # of a file, if nothing else is said
OWN_WEIGHTS = "weights.safetensors"  # of a module of the user's own


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that tells plain transformers where a row's padding begins; None where it is EOS, which ends the row."""
    pad: int | None = tokenizer.pad_token_id
    return None if pad == tokenizer.eos_token_id else pad


def write_model(
    target: Path,
    model: nn.Module,
    weights: dict[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a transformers or peft model, its tokenizer and its card to `target`, in place of what was there.

    `weights` is the state dict to write, None for the model's own; a file has at most `shard_bytes`, or one tensor.
    Raises TrainingError where the weights could not be written, the former folder staying, and for other files once the
    folder stands without them.
    """
    with disk_errors(target), whole_folder(target) as unfinished:
        lost = write_weights(unfinished, model, weights, shard_bytes)
        lost += write_rest(unfinished, model, tokenizer, card)
    tell_lost(target, lost)


def write_into(
    folder: Path,
    model: nn.Module,
    weights: dict[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """The same into a folder that may hold other files, which stay."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lost = write_weights(folder, model, weights, shard_bytes)
        lost += write_rest(folder, model, tokenizer, card)
    tell_lost(folder, lost)


def write_each(writings: Sequence[Callable[[], None]]) -> None:
    """Write all that can be written. Raises one TrainingError with what could not, after all were tried."""
    failures: list[str] = []
    for write in writings:
        with Attempt(None, failures):
            write()
    if failures:
        raise TrainingError("; ".join(failures))


def rehearse(place: Path, role: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, card: str) -> None:
    """Write everything but weights into a folder beside `place` and remove it again.

    Raises TrainingError where nothing can be written there, ModelError for what transformers refuses to save.
    """
    if place.exists() and not place.is_dir():
        raise TrainingError(
            f"{place} is a file, and the model is to be saved there: move it away, or change output_dir"
        )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.rehearsal") as folder:
            inner = inner_model(model)
            lost: list[str] = []
            if isinstance(inner, PreTrainedModel):
                with Attempt("configuration", lost):
                    inner.config.save_pretrained(folder)
            if is_adapted(model):
                with Attempt("adapters", lost):
                    adapters_of(model).save_pretrained(folder)
            lost += write_rest(Path(folder), inner, tokenizer, card)
    except OSError as error:
        raise TrainingError(f"nothing can be saved in {place.parent}: {error}. Change output_dir") from error
    if lost:
        raise ModelError(f"{role}: this cannot be saved: the {'; the '.join(lost)}. {ADVICE}")


def require_space(places: Sequence[tuple[Path, nn.Module]]) -> None:
    """Raise TrainingError where the disk has no room for the weights; a former folder goes once the new one stands."""
    free = shutil.disk_usage(places[0][0].parent).free
    for place, model in places:
        size = sum(map(_bytes_written, model.parameters()))
        if size > free:
            raise TrainingError(
                f"{place} needs {size:,} bytes and {free:,} are free: the model could not be saved at the end. Make "
                "room, or change output_dir"
            )
        free += sum(file.stat().st_size for file in place.glob("*.safetensors")) - size


def _bytes_written(weight: nn.Parameter) -> int:
    """What a weight takes in a folder. Packed ones, 4 bits each, are written whole, in at most four bytes."""
    return weight.numel() * (weight.element_size() if weight.is_floating_point() else 2 * 4)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Errors of the disk as errors for the user, with the room that is left; safetensors has one of its own."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(target.parent).free if target.parent.exists() else 0
        raise TrainingError(f"saving to {target} failed: {error} ({free:,} bytes free)") from error


def tell_lost(target: Path, lost: Sequence[str]) -> None:
    """Raise TrainingError where parts of a folder could not be written."""
    if lost:
        raise TrainingError(f"{target} holds the weights, but not the {'; nor the '.join(lost)}")


def write_weights(
    folder: Path, model: nn.Module, weights: dict[str, Tensor] | None, shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Weights and configuration; which of the two could not be written, and why.

    A wrong configuration of either kind would keep transformers from writing the weights: the generation config comes
    after them, and where the configuration is wrong they are written without it.
    """
    if not isinstance(inner_model(model), PreTrainedModel):
        _write_own(folder, model.state_dict() if weights is None else weights)
        return []
    if not isinstance(model, PreTrainedModel):
        model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
        return []
    lost: list[str] = []
    config, generation = model.config, model.generation_config if model.can_generate() else None
    try:
        if generation is not None:
            model.generation_config = GenerationConfig()
        with Attempt("configuration", lost, passing=(OSError, SafetensorError)):  # no configuration mends the disk
            model.save_pretrained(folder, state_dict=weights, max_shard_size=shard_bytes)
        if lost:
            model.config = type(config)()
            model.save_pretrained(folder, state_dict=weights, max_shard_size=shard_bytes)
            (folder / "config.json").unlink()
    finally:
        model.config = config
        if generation is not None:
            model.generation_config = generation
    return lost


def _write_own(folder: Path, weights: dict[str, Tensor]) -> None:
    """The state dict of a module of the user's own, a tensor of two names under the first (for load_model)."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in weights.items():
        first.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
    save_file({name: weights[name].detach().contiguous() for name in first.values()}, folder / OWN_WEIGHTS)


def write_rest(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, card: str) -> list[str]:
    """Everything but weights and configuration; which parts could not be written, and why."""
    lost: list[str] = []
    if isinstance(model, PreTrainedModel) and model.can_generate():
        (folder / "generation_config.json").unlink(missing_ok=True)
        with Attempt("generation config", lost):
            model.generation_config.save_pretrained(folder)
    with Attempt("tokenizer", lost):
        tokenizer.save_pretrained(folder)
    with Attempt("model card", lost):
        (folder / "README.md").write_text(card, encoding="utf-8")
    return lost
