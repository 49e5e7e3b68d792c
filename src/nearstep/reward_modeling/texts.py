"""Which texts are scored: those in the data, or those that the model generates from its prompts."""

from itertools import islice

from nearstep.common.template_kwargs import COLUMN
from nearstep.config.reward_model import RewardConfig
from nearstep.data.checks import check_text, text_of
from nearstep.data.encode import encode_prompts
from nearstep.data.formats.recognise import HEAD_ROWS, recognise
from nearstep.data.layout import layout_of
from nearstep.data.pairs import pairs_of
from nearstep.data.prompts import PromptSet
from nearstep.data.row_errors import BadValueError
from nearstep.data.table import Table
from nearstep.reward_modeling.encoding import LeftOutRows
from nearstep.reward_modeling.scored_texts import PromptWithAnswers, TextAnswer, TextsToScore
from nearstep.reward_modeling.writing import Writer, WrittenText

TEXT = "text"  # column of texts without prompts


def texts_to_score_of(table: Table, config: RewardConfig, writer: Writer) -> TextsToScore:
    """Prompts with two answers, with one, or with none, which the model then writes; or texts alone.

    Raises DataError naming bad rows.
    """
    head = list(islice(table.rows, HEAD_ROWS))
    if config.dataset_format is None and TEXT in table.columns and recognise(table.columns, head) is None:
        return _texts(table, config)
    shown = layout_of(table, config.dataset_format).format
    if shown is not None and shown.pairs is not None:
        return _pairs(table, config)
    prompts = encode_prompts(
        table,
        writer.tokenizer,
        vocab_size=writer.limits.rows,
        dataset_format=config.dataset_format,
        on_bad_row=config.on_bad_row,
        template_kwargs=config.chat_template_kwargs,
    )
    report = prompts.report
    notes = [f"Prompts from {table.label}: {len(prompts)} of {report.counts.read} rows.", *report.sentences()]
    answered = [prompt for number in range(len(prompts)) for prompt in _answered(prompts, number)]
    if answered:
        return TextsToScore(answered, table.label, [*notes, f"{len(answered)} of them have an answer in the data."])
    written = _written(prompts, writer)
    return TextsToScore(
        written, table.label, [*notes, f"The model wrote {config.num_generations} texts to each of them."]
    )


def texts_from_nothing(writer: Writer) -> TextsToScore:
    """Texts that the model writes without being asked anything."""
    texts = [PromptWithAnswers("", [_answer(each)], "") for each in writer.from_nothing()]
    kept = [prompt for prompt in texts if prompt.answers[0].content]
    note = f"There is no data: the model wrote {len(texts)} texts from nothing but the token that begins a text."
    return TextsToScore(kept, "the texts that the model wrote", [note])


def _texts(table: Table, config: RewardConfig) -> TextsToScore:
    left_out_rows = LeftOutRows(config.on_long_text, config.on_bad_row)
    found = []
    for number, row in enumerate(table.rows):
        place = f"{table.label}, {table.position(number)}"
        try:
            text = text_of(row, TEXT)
            check_text(text, TEXT)
        except BadValueError as error:
            left_out_rows.add(error, place)
            continue
        columns = {name: row.get(name) for name in table.columns if name != TEXT}
        found.append(PromptWithAnswers("", [TextAnswer(text)], place, columns))
    notes = left_out_rows.settle(table.label, len(table), len(found))
    return TextsToScore(found, table.label, [f"Texts from {table.label}: {len(found)} of {len(table)} rows.", *notes])


def _pairs(table: Table, config: RewardConfig) -> TextsToScore:
    pairs = pairs_of(table, dataset_format=config.dataset_format, on_bad_row=config.on_bad_row)
    found = [
        PromptWithAnswers(
            each.prompt,
            [TextAnswer(each.chosen), TextAnswer(each.rejected)],
            each.place,
            {COLUMN: each.template_kwargs} if COLUMN in table.columns else {},
        )
        for each in pairs.pairs
    ]
    note = "Which answer of a pair is the better one is left to the rewards; the data's own order is not used."
    return TextsToScore(found, table.label, [*pairs.sentences(), note])


def _answered(prompts: PromptSet, number: int) -> list[PromptWithAnswers]:
    """The prompt with the answer that the data holds, if it holds one."""
    row = prompts.table.rows[int(prompts.table_rows[number])]
    shown, answer = prompts.reader.shown(row)
    if shown is None or answer is None:
        return []
    return [PromptWithAnswers(shown, [TextAnswer(answer)], _place(prompts, number), _columns(prompts, number))]


def _written(prompts: PromptSet, writer: Writer) -> list[PromptWithAnswers]:
    """Every prompt with answers by the model."""
    all_prompts = [prompts.prompt(number) for number in range(len(prompts))]
    written = writer.answer([prompt.ids for prompt in all_prompts], [prompt.shown for prompt in all_prompts])
    return [
        PromptWithAnswers(
            prompt.shown,
            [_answer(each) for each in several],
            _place(prompts, number),
            _columns(prompts, number),
        )
        for number, (prompt, several) in enumerate(zip(all_prompts, written, strict=True))
    ]


def _answer(written: WrittenText) -> TextAnswer:
    return TextAnswer(written.text, written.finished, (written.prompt_ids, written.ids))


def _place(prompts: PromptSet, number: int) -> str:
    return f"{prompts.table.label}, {prompts.position(number)}"


def _columns(prompts: PromptSet, number: int) -> dict[str, object]:
    """What reward functions get of the row: a reference only if the data has one beside the answer that is scored."""
    row = prompts.table.rows[int(prompts.table_rows[number])]
    own = prompts.reader.layout.gives_reference(prompts.table.columns)
    return {name: row.get(name) for name in prompts.columns if not (own and name == "reference")}
