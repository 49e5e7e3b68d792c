"""Rows with an instruction: Alpaca's `instruction` and `input`, and the raw UltraFeedback with its rated answers."""

from collections.abc import Mapping

from nearstep.data.checks import text_of, value_of, wrong_type
from nearstep.data.formats.format import Format, PreferencePair, PromptRow, Row, answer_text
from nearstep.data.formats.preferences import checked_pair, number_of
from nearstep.data.row_errors import BadValueError, RowError
from nearstep.types import Message

# Whole-answer ratings, the one that people gave first.
RATINGS = ("overall_score", "fine-grained_score")


def _alpaca(row: Row) -> PromptRow:
    """The instruction, and below it its input; a chat where there is a system message or a history.

    Either may be blank: some data sets put the whole question into the input.
    """
    instruction = text_of(row, "instruction")
    given = row.get("input")
    if given is not None and not isinstance(given, str):
        raise wrong_type("input", given, "text", "Give text, or leave the input out.")
    prompt = "\n".join(part for part in (instruction, given) if part and part.strip()) or instruction
    before = [*_system(row), *_history(row)]
    reference = answer_text(row.get("output"))
    return PromptRow([*before, {"role": "user", "content": prompt}] if before else prompt, reference)


def _system(row: Row) -> list[Message]:
    system = row.get("system")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []


def _history(row: Row) -> list[Message]:
    history = row.get("history")
    if not history:
        return []
    turns = history if isinstance(history, list | tuple) else [history]
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, list | tuple) or len(turn) != 2 or not all(isinstance(said, str) for said in turn):
            raise wrong_type("history", history, "a list of [question, answer]", "Give two texts for each turn.")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return messages


def _instruction(row: Row) -> PromptRow:
    return PromptRow(text_of(row, "instruction"))


def _best_against_rest(row: Row) -> list[PreferencePair]:
    """The best-rated answer against every one that is rated lower; the margin is the gap of the ratings."""
    prompt = text_of(row, "instruction")
    answers = value_of(row, "completions")
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, Mapping) for answer in answers):
        raise wrong_type("completions", answers, "a list of rated answers", "Give each 'response' and 'overall_score'.")
    rated = sorted(((_rating(answer), text_of(answer, "response")) for answer in answers), key=lambda pair: -pair[0])
    if len({rating for rating, _ in rated}) < 2:
        problem = "there are no two answers with different ratings"
        raise BadValueError(RowError.ALIKE, "completions", answers, problem, "Take out rows that prefer nothing.")
    (best, better), *rest = rated
    return [
        checked_pair(PreferencePair(prompt, better, worse, best - rating), "completions", "completions")
        for rating, worse in rest
        if rating < best
    ]


def _rating(answer: Mapping[str, object]) -> float:
    name = next((name for name in RATINGS if answer.get(name) is not None), RATINGS[0])
    return number_of(answer, name)


ALPACA = Format("alpaca", ("instruction", "input", "system", "history"), _alpaca, has_reference=True)
ULTRAFEEDBACK = Format("ultrafeedback", ("instruction",), _instruction, _best_against_rest)
