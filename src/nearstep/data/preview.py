"""What exactly the model will see, in words and numbers."""

from nearstep.data.formats.recognise import contradicted_hint
from nearstep.data.manifest import Lengths
from nearstep.data.mix import PromptMix
from nearstep.data.prompts import PromptSet

SHOWN_CHARACTERS = 4000
SHOWN_IDS = 8


def preview(mix: PromptMix, rows: int = 2, *, streaming: bool = False) -> str:
    """The first prompts as the model sees them: decoded from their ids with every special token, and quoted by line.

    `streaming`: the prompts are only the first of what will be played.
    """
    rows = rows if len(mix.sets) == 1 else 1
    lines = []
    for prompts, share in zip(mix.sets, mix.shares, strict=True):
        lines.append(summary(prompts, streaming=streaming))
        if len(mix.sets) > 1:
            lines.append(f"  {share / sum(mix.shares):.1%} of what is played comes from here")
        lines += [_shown(prompts, number) for number in range(min(rows, len(prompts)))]
    return "\n".join(lines)


def summary(prompts: PromptSet, *, streaming: bool = False) -> str:
    """How many rows became prompts and how long these are."""
    report, tokens = prompts.report, Lengths.of(prompts.lengths.numpy())
    return "\n".join(
        [
            f"Prompts from {prompts.table.label}: {len(prompts)} of {'the first ' * streaming}"
            f"{report.counts.read} rows, format {report.layout.name}",
            *(f"  {hint}" for hint in contradicted_hint(prompts.table.name, report.layout.format)),
            f"  tokens: {tokens.spread}",
            *(f"  {sentence}" for sentence in report.sentences()),
        ]
    )


def _shown(prompts: PromptSet, number: int) -> str:
    ids = prompts.ids(number)
    text: str = prompts.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    warnings = [f"  warning: {warning}" for warning in _warnings(prompts, ids)]
    lines = [f"    {line!r}" for line in _shortened(text).splitlines(keepends=True)]
    return "\n".join([f"{prompts.position(number)}: {len(ids)} ids, {_ends_of(ids)}", *lines, *warnings])


def _warnings(prompts: PromptSet, ids: list[int]) -> list[str]:
    eos, bos = prompts.tokenizer.eos_token_id, prompts.tokenizer.bos_token_id
    said = [
        (eos is not None and ids[-1] == eos, "it ends with EOS, so the model may think that all is said"),
        (bos is not None and ids[:2] == [bos, bos], "it begins with BOS twice: text and tokenizer both bring one"),
    ]
    return [warning for holds, warning in said if holds]


def _ends_of(ids: list[int]) -> str:
    if len(ids) <= 2 * SHOWN_IDS:
        return str(ids)
    return f"{str(ids[:SHOWN_IDS])[:-1]} … {str(ids[-SHOWN_IDS:])[1:]}"


def _shortened(text: str) -> str:
    half = SHOWN_CHARACTERS // 2
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:half]}\n… {len(text) - 2 * half} characters not shown …\n{text[-half:]}"
