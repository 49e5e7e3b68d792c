"""Laws of what an engine's rows look like: prompts, turns, segments, stop tokens and limits."""

from dataclasses import replace
from itertools import groupby

from nearstep.common.errors import TrainingError
from nearstep.rollout.optional_checks import (
    asked_rows,
    check_ends,
    check_episodes,
    check_model_inputs,
    check_versions,
)
from nearstep.testing.engine_stage import ALL, SETTINGS, VERSION, Stage
from nearstep.testing.world import PROMPTS, STOP_IDS, prompts_of
from nearstep.types import Rollout


def layout(stage: Stage) -> str | None:
    """One row for each prompt, or several side by side; the first begins with it."""
    rollout = stage.rollout
    if len(rollout.segment_counts) != len(PROMPTS):
        return f"{len(rollout.segment_counts)} rows for {len(PROMPTS)} prompts (with several for one, its `episodes`)"
    if int(rollout.row_lengths.sum()) != len(rollout.tokens) or len(rollout.is_action) != len(rollout.tokens):
        return "row_lengths, tokens and is_action do not belong together"
    if len(rollout.logprobs) != int(rollout.is_action.sum()):
        return f"{len(rollout.logprobs)} log-probs for {int(rollout.is_action.sum())} actions"
    first = rollout.segment_counts.cumsum(0) - rollout.segment_counts
    for row, (given, played) in enumerate(zip(prompts_of(ALL).ids, rollout.select(first).prompt_ids(), strict=True)):
        if given != played:
            return f"row {row} was asked {given} and begins with {played}"
    return None


def ends(stage: Stage) -> str | None:
    """Each turn ends with its first stop token, and `finished` says whether the last did."""
    rollout, last = stage.rollout, stage.rollout.ends_episode.tolist()
    for row, (turns, finished) in enumerate(zip(_turns(rollout), rollout.finished.tolist(), strict=True)):
        said = sum(map(len, turns))
        if not turns or said > SETTINGS.response_length:
            return f"row {row} has {said} tokens, its limit is {SETTINGS.response_length}"
        for ids in turns:
            if any(token in STOP_IDS for token in ids[:-1]):
                return f"row {row} goes on after its stop token: {ids}, stop tokens {STOP_IDS}"
        stopped = turns[-1][-1] in STOP_IDS
        short = rollout.episodes is None and said < SETTINGS.response_length
        if last[row] and (finished != stopped or (short and not stopped)):
            return f"row {row} has finished = {finished} and the tokens {turns[-1]}, stop tokens {STOP_IDS}"
    return None


def _turns(rollout: Rollout) -> list[list[list[int]]]:
    """What the policy said in each row, turn by turn."""
    rows: list[list[list[int]]] = []
    for ids, flags in zip(rollout.completion_ids(), rollout.completion_actions(), strict=True):
        runs = groupby(zip(ids, flags, strict=True), key=lambda pair: pair[1])
        rows.append([[token for token, _ in run] for chosen, run in runs if chosen])
    return rows


def no_stop(stage: Stage) -> str | None:
    """Without stop tokens the policy says all that it may."""
    rollout = stage.play(settings=replace(SETTINGS, stop_ids=()))
    counts = rollout.by_episode().action_counts.tolist()
    short = [said for said in counts if said < SETTINGS.response_length]
    return f"without stop tokens a response has {short[0]} of {SETTINGS.response_length} tokens" if short else None


def goes_on(stage: Stage) -> str | None:
    """A row that was broken off after two tokens and goes on is the row that never was."""
    whole, rows = stage.rollout.completion_ids(), [row for row in ALL if len(stage.rollout.completion_ids()[row]) > 2]
    prompts = prompts_of(rows)
    ids = [[*prompt, *whole[row][:2]] for prompt, row in zip(prompts.ids, rows, strict=True)]
    left = (SETTINGS.response_length - 2,) * len(rows)
    settings = replace(SETTINGS, limits=left, begun=(2,) * len(rows))
    rest = stage.engine.generate(replace(prompts, ids=ids), settings).completion_ids()
    for row, found in zip(rows, rest, strict=True):
        if found != whole[row][2:]:
            return f"row {row} goes on after {whole[row][:2]} with {found}, and by itself with {whole[row][2:]}"
    return None


def optional_fields(stage: Stage) -> str | None:
    """Turns, segments, versions and inputs beside tokens, where an engine has them."""
    rollout, prompts = stage.rollout, prompts_of(ALL)
    limits = [SETTINGS.response_length] * len(prompts)
    try:
        check_episodes(rollout, prompts, "given")
        by_row = asked_rows(rollout, prompts, limits, "given").prompts
        check_ends(rollout, by_row, "given")
        check_versions(rollout, by_row, "given", VERSION)
        check_model_inputs(rollout, "given")
    except TrainingError as error:
        return str(error).removeprefix("engine given: ")
    return None
