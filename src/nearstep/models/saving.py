"""How a model folder is written: weights first, beside its place and then moved into it, so that it is never half a
model; and how all that could fail there is tried before a run."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.errors import ModelError, TrainingError
from nearstep.common.whole_folder import whole_folder
from nearstep.models.adapters import adapters_of, is_adapted
from nearstep.models.roles import transformers_model

ADVICE = "The run would train, and then lose this at its end: mend it first."


def write_model(
    target: Path,
    model: nn.Module,
    weights: dict[str, Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> None:
    """Write a transformers or peft model, its tokenizer and its card to `target`, in place of what was there.

    `weights` is the state dict to write, None for the model's own. Raises TrainingError where the weights could not be
    written, the former folder staying, and for other files once the folder stands without them.
    """
    try:
        with whole_folder(target) as unfinished:
            lost = [*_write_weights(unfinished, model, weights), *_write_rest(unfinished, model, tokenizer, card)]
    except OSError as error:
        free = shutil.disk_usage(target.parent).free if target.parent.exists() else 0
        raise TrainingError(f"saving to {target} failed: {error} ({free:,} bytes free)") from error
    if lost:
        raise TrainingError(f"{target} holds the weights, but not the {'; nor the '.join(lost)}")


def write_each(writings: Sequence[Callable[[], None]]) -> None:
    """Write all that can be written. Raises one TrainingError with what could not, after all were tried."""
    failures = []
    for write in writings:
        try:
            write()
        except Exception as error:  # noqa: BLE001 (the next may well succeed; all are told)
            failures.append(error)
    if failures:
        raise TrainingError("; ".join(map(_reason, failures))) from failures[0]


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
            inner = transformers_model(model, role)
            lost = _tried("configuration", lambda: inner.config.save_pretrained(folder))
            if is_adapted(model):
                lost += _tried("adapters", lambda: adapters_of(model).save_pretrained(folder))
            lost += _write_rest(Path(folder), inner, tokenizer, card)
    except OSError as error:
        raise TrainingError(f"nothing can be saved in {place.parent}: {error}. Change output_dir") from error
    if lost:
        raise ModelError(f"{role}: this cannot be saved: the {'; the '.join(lost)}. {ADVICE}")


def require_space(places: Sequence[tuple[Path, nn.Module]]) -> None:
    """Raise TrainingError where the disk has no room for the weights; a former folder goes once the new one stands."""
    free = shutil.disk_usage(places[0][0].parent).free
    for place, model in places:
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        if size > free:
            raise TrainingError(
                f"{place} needs {size:,} bytes and {free:,} are free: the model could not be saved at the end. Make "
                "room, or change output_dir"
            )
        free += sum(file.stat().st_size for file in place.glob("*.safetensors")) - size


def _write_weights(folder: Path, model: nn.Module, weights: dict[str, Tensor] | None) -> list[str]:
    """Weights and configuration. Where transformers refuses to save the model the bare weights are written."""
    own = model.generation_config if _generates(model) else None
    try:
        if own is not None:  # a wrong one would keep the weights from being written; it comes after them
            model.generation_config = GenerationConfig()
        model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 (of settings that cannot be saved; it is told)
        (folder / "config.json").unlink(missing_ok=True)  # it is empty then
        save_model(model, str(folder / "model.safetensors"))
        return [f"configuration ({_reason(error)})"]
    finally:
        if own is not None:
            model.generation_config = own
    return []


def _write_rest(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, card: str) -> list[str]:
    """Everything but weights and configuration; which parts could not be written, and why."""
    lost = []
    if _generates(model):
        (folder / "generation_config.json").unlink(missing_ok=True)
        lost += _tried("generation config", lambda: model.generation_config.save_pretrained(folder))  # type: ignore[union-attr, operator]
    lost += _tried("tokenizer", lambda: tokenizer.save_pretrained(folder))
    lost += _tried("model card", lambda: (folder / "README.md").write_text(card, encoding="utf-8"))
    return lost


def _tried(part: str, write: Callable[[], object]) -> list[str]:
    try:
        write()
    except Exception as error:  # noqa: BLE001 (the weights are more than this part; it is told)
        return [f"{part} ({_reason(error)})"]
    return []


def _generates(model: nn.Module) -> bool:
    return isinstance(model, PreTrainedModel) and bool(model.can_generate())


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:400].rstrip(".")
    return text if isinstance(error, TrainingError) else f"{type(error).__name__}: {text}"
