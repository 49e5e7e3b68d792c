"""What a policy minimises beside PPO's loss, by the settings and the user's objects; no weight is loaded for it."""

from collections.abc import Sequence
from dataclasses import replace

from nearstep.assembly.auxiliary_checks import fitting_auxiliary_loss
from nearstep.assembly.checked_inputs import CheckedInputs
from nearstep.assembly.inputs import RunInputs
from nearstep.common.errors import ConfigError, DataError, shorten
from nearstep.common.plugins import load_object, made
from nearstep.common.telling import tell
from nearstep.config.auxiliary import remarks_without
from nearstep.config.ppo import PPOConfig
from nearstep.data.sources import DataSource, text_sources
from nearstep.data.templates import style_of
from nearstep.data.text_rows import TextRows
from nearstep.data.texts import read_texts
from nearstep.data.tokenise import PromptTokenizer
from nearstep.training.auxiliary import Auxiliary, AuxiliaryLoss, GoodRowsNLL, TeacherKL, ZLoss
from nearstep.training.ptx import Pretraining

LONGEST_ROW = 1024
TAKEN = ("ptx", "good_rows", "teacher_kl")  # names of other metrics of the group


def auxiliary_of(config: PPOConfig, inputs: RunInputs, checked: CheckedInputs) -> Auxiliary:
    """Every auxiliary loss of a run. Raises ConfigError or DataError for what does not fit."""
    has_teacher = inputs.teacher_model is not None or config.teacher_model_path is not None
    sources = text_sources(config, inputs.ptx_dataset)
    for remark in remarks_without(config, teacher=has_teacher, texts=bool(sources)):
        tell(remark)
    losses = tuple(_losses(config, inputs, has_teacher=has_teacher))
    names = [*TAKEN, *(each.name for each in losses)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"auxiliary_losses: two are called {twice!r}, which is a metric's name: give one another name"
        )
    own = [each.name for each in losses if not isinstance(each, GoodRowsNLL | TeacherKL | ZLoss)]
    notes = [f"Auxiliary losses of your own: {', '.join(own)}."] if own else []
    if not sources:
        return Auxiliary(losses, notes=tuple(notes))
    longest = _longest_row(config, checked.positions)
    texts, left_out = _texts(config, checked, sources, longest)
    step = config.ptx_batch_size or max(1, checked.batch.batch // checked.batch.minibatches)
    notes += [*left_out, _introduced(texts, step, longest)]
    return Auxiliary(losses, Pretraining(texts, config.ptx_coef, step, config.seed), tuple(notes))


def with_texts(checked: CheckedInputs, auxiliary: Auxiliary) -> CheckedInputs:
    """The same, its hash of the data also over the texts of a pretraining loss: a run that goes on needs the same."""
    if auxiliary.pretraining is None:
        return checked
    return replace(checked, data=f"{checked.data} {auxiliary.pretraining.texts.digest()}")


def require_part(config: PPOConfig, names: Sequence[str]) -> None:
    """Raise ConfigError where nll_reward names no part of the reward."""
    if config.nll_coef > 0 and config.nll_reward is not None and config.nll_reward not in names:
        raise ConfigError(f"nll_reward = {config.nll_reward}: the parts of the reward are {', '.join(names)}")


def _losses(config: PPOConfig, inputs: RunInputs, *, has_teacher: bool) -> list[AuxiliaryLoss]:
    losses: list[AuxiliaryLoss] = []
    if config.nll_coef > 0:
        losses.append(GoodRowsNLL(config.nll_coef))
    if config.z_loss_coef > 0:
        losses.append(ZLoss(config.z_loss_coef))
    if has_teacher and config.teacher_in == "loss":
        losses.append(TeacherKL(config.teacher_coef))
    for given in (*inputs.auxiliary_losses, *config.auxiliary_losses):
        if isinstance(given, str) and ".py:" not in given:
            raise ConfigError(f"auxiliary_losses: {shorten(given)} is no loss; give an object, or file.py:Name")
        if isinstance(given, str):
            found, what = load_object(given, kind="auxiliary loss", error=ConfigError), f"auxiliary loss {given!r}"
        else:
            found = made(given, "auxiliary_losses", ConfigError)
            what = f"auxiliary loss {type(found).__name__}"
        losses.append(fitting_auxiliary_loss(found, what))
    return losses


def _texts(
    config: PPOConfig, checked: CheckedInputs, sources: Sequence[DataSource], longest: int
) -> tuple[TextRows, list[str]]:
    """The texts of all data sets, one set after the other, and what was left out."""
    import datasets

    tokenizer = PromptTokenizer.of(
        checked.tokenizer, checked.vocabulary, style_of(config.prompt_type), config.chat_template_kwargs
    )
    parts = []
    for source in sources:
        if isinstance(source.given, datasets.IterableDataset):
            raise DataError(
                "ptx_dataset: it is a stream, and texts are drawn by number, in passes, so that a run that goes on "
                "takes the same ones. Load it without streaming=True, or give a part: datasets.Dataset.from_list(…)"
            )
        parts.append(
            read_texts(
                source.table(config), tokenizer, column=config.ptx_text_column, longest=longest,
                on_bad_row=config.on_bad_row, backend=checked.backend,
            )
        )  # fmt: skip
    return TextRows.joined([part.rows for part in parts]), [note for part in parts for note in part.notes]


def _longest_row(config: PPOConfig, positions: int | None) -> int:
    """ptx_row_length, or what the models can read. Raises ConfigError where they cannot read so much."""
    if config.ptx_row_length is None:
        return LONGEST_ROW if positions is None else min(LONGEST_ROW, positions)
    if positions is not None and config.ptx_row_length > positions:
        raise ConfigError(f"ptx_row_length = {config.ptx_row_length}, and the models have {positions} positions")
    return config.ptx_row_length


def _introduced(texts: TextRows, step: int, longest: int) -> str:
    predicted = int(texts.predicted.sum())
    return (
        f"Pretraining loss on {len(texts):,} rows of at most {longest} tokens, {predicted:,} tokens to be predicted; "
        f"{step} rows for every optimizer step of the policy."
    )
