"""The laws of rollout engines."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from nearstep.common.errors import ConfigError
from nearstep.models.distribution import Sampling
from nearstep.models.roles import make_policy
from nearstep.rewards.functions import function_name
from nearstep.testing.engine_rows import ends, goes_on, layout, no_stop, optional_fields
from nearstep.testing.engine_stage import ALL, SETTINGS, TOLERANCE, TOP_K, VERSION, WITH_TOP, Stage
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.testing.world import prompts_of, reset_weights, small_model
from nearstep.types import Rollout


def check_engine(
    given: object, *, tolerance: float = TOLERANCE, skip: Sequence[str] = (), head_dim: int = 8
) -> CheckResult:
    """Hold a rollout engine to its laws on a small policy. Raises ConformanceError with the first that is broken.

    `given` is the engine, or its class or a function, which is called with EngineSettings. `tolerance` is how far
    recorded log-probs may be from the trainer's, in nats. `trainer_logprobs`, `greedy_tokens`, `most_probable` and
    `new_weights` are not universal: an engine may sample from weights of lower precision, or older ones, and record
    what it sampled. Laws of what `capabilities()` does not name do not bind. `head_dim` is the width of the small
    policy's attention heads: some kernels take only wide ones. The engine is closed at the end.
    """
    stage = Stage(given, tolerance, make_policy(small_model(head_dim=head_dim)))
    try:
        return hold(f"engine {_name(given)}", stage, LAWS, skip)
    finally:
        stage.close()


def _name(given: object) -> str:
    return function_name(given) if callable(given) else type(given).__name__


def _protocol(stage: Stage) -> str | None:
    try:
        found = [stage.can, stage.can]
    except ConfigError as error:
        return str(error)
    return None if found[0] == found[1] else f"capabilities() is {found[0]}, and then {found[1]}"


def _limits(stage: Stage) -> str | None:
    limits = [row % 5 + 1 for row in ALL]
    rollout = stage.play(settings=replace(SETTINGS, stop_ids=(), limits=tuple(limits)))
    lengths = [len(ids) for ids in rollout.completion_ids()]
    return None if lengths == limits else f"limits {limits} gave responses of {lengths} tokens"


def _normal(stage: Stage) -> str | None:
    logprobs = stage.rollout.logprobs
    if logprobs.dtype not in (torch.float32, torch.float64):
        return f"log-probs are {logprobs.dtype}: ratios need float32 at least"
    wrong = logprobs[~(logprobs <= 0) | logprobs.isinf()]
    return f"a log-prob is {float(wrong[0])}" if len(wrong) else None


def _trainer_logprobs(stage: Stage) -> str | None:
    for sampling in (SETTINGS.sampling, Sampling(1.3, top_k=6), Sampling(0.7, top_p=0.8)):
        rollout = stage.play(settings=replace(SETTINGS, sampling=sampling))
        gap = stage.gap(rollout, sampling)
        if not gap <= stage.tolerance:
            return f"with {sampling} a log-prob is {gap:.3g} nats from the trainer's (tolerance {stage.tolerance:g})"
    return None


def _top_tokens(stage: Stage) -> str | None:
    if stage.rollout.top is not None:
        return "top tokens were recorded and not asked for"
    rollout = stage.play(settings=WITH_TOP)
    if rollout.top is None or rollout.top.ids.shape != (len(rollout.logprobs), TOP_K):
        shape = None if rollout.top is None else list(rollout.top.ids.shape)
        return f"top_tokens={TOP_K} for {len(rollout.logprobs)} actions gave ids of shape {shape}"
    for action, ids, logprobs in zip(rollout.actions, rollout.top.ids, rollout.top.logprobs, strict=True):
        if len(ids.unique()) < TOP_K:
            return f"the top tokens {ids.tolist()} are not {TOP_K} different ones"
        if not (ids == action).any():
            return f"the sampled token {int(action)} is not among the top tokens {ids.tolist()}"
        if logprobs.exp().sum() > 1 + stage.tolerance:
            return f"the top tokens have probability {float(logprobs.exp().sum()):.6g} together"
    sampled = rollout.top.logprobs[rollout.top.ids == rollout.actions[:, None]]
    gap = float((sampled - rollout.logprobs).abs().max())
    return (
        f"the sampled token has another log-prob among the top tokens, by {gap:.3g}" if gap > stage.tolerance else None
    )


def _most_probable(stage: Stage) -> str | None:
    rollout = stage.play(settings=WITH_TOP)
    assert rollout.top is not None
    _, now = stage.trainer_logprobs(rollout)
    gap = float((now.gather(1, rollout.top.ids) - rollout.top.logprobs).abs().max())
    if not gap <= stage.tolerance:
        return f"a recorded top log-prob is {gap:.3g} nats from the trainer's (tolerance {stage.tolerance:g})"
    # The sampled token may have taken the place of the last.
    recorded, expected = (logprobs.topk(TOP_K - 1).values[:, -1] for logprobs in (rollout.top.logprobs, now))
    worst = float((expected - recorded).max())
    return f"a token {worst:.3g} nats more probable was left out" if worst > stage.tolerance else None


def _own_episode(stage: Stage) -> str | None:
    together = _answers(stage.rollout)
    backwards = _answers(stage.play(ALL[::-1]))[::-1]
    alone = [_answers(stage.play([row]))[0] for row in ALL]
    for row in ALL:
        for other, where in ((backwards[row], "in reverse order"), (alone[row], "alone")):
            if together[row] != other:
                return f"episode {row} is {together[row]}, and {other} {where}"
    return None


def _episodes_differ(stage: Stage) -> str | None:
    prompts = prompts_of([0] * 20)
    rollout = stage.engine.generate(replace(prompts, episodes=list(range(20))), SETTINGS)
    played = {tuple(ids) for ids in _answers(rollout)}
    return "20 episodes of one prompt gave the same response" if len(played) == 1 else None


def _seed(stage: Stage) -> str | None:
    other = stage.play(settings=replace(SETTINGS, seed=SETTINGS.seed + 1))
    same = other.completion_ids() == stage.rollout.completion_ids()
    return "two seeds gave the same responses" if same else None


def _greedy(stage: Stage) -> str | None:
    prompts = prompts_of([1] * 6)
    greedy = replace(SETTINGS, greedy=True)
    first, *others = (
        _answers(stage.engine.generate(replace(prompts, episodes=episodes), replace(greedy, seed=seed)))
        for episodes, seed in ((list(range(6)), 0), (list(range(6, 12)), 0), (list(range(6)), 1))
    )
    played = {tuple(ids) for ids in (*first, *(ids for other in others for ids in other))}
    return f"greedy responses to one prompt are {sorted(played)[:2]}" if len(played) > 1 else None


def _answers(rollout: Rollout) -> list[list[int]]:
    return rollout.by_episode().completion_ids()


def _greedy_tokens(stage: Stage) -> str | None:
    rollout = stage.play(settings=replace(SETTINGS, greedy=True))
    sampled, now = stage.trainer_logprobs(rollout)
    gap = float((now.max(-1).values - sampled).max())
    return f"a greedy token is {gap:.3g} nats less probable than the best" if gap > stage.tolerance else None


def _version(stage: Stage) -> str | None:
    engine = stage.engine
    versions = [engine.generate(prompts_of([0, 1]), SETTINGS).policy_version.tolist()]
    engine.load(stage.policy, VERSION + 1)
    versions.append(engine.generate(prompts_of([0, 1]), SETTINGS).policy_version.tolist())
    late = any(version > VERSION + step for step, row in enumerate(versions) for version in row)
    return f"loads of versions {VERSION} and {VERSION + 1} were recorded as {versions}" if late else None


def _new_weights(stage: Stage) -> str | None:
    engine = stage.engine
    engine.generate(prompts_of(ALL), SETTINGS)
    try:
        reset_weights(stage.policy.model, seed=1)
        engine.load(stage.policy, VERSION + 1)
        rollout = engine.generate(prompts_of(ALL), SETTINGS)
        gap = stage.gap(rollout, SETTINGS.sampling)
    finally:
        reset_weights(stage.policy.model, seed=0)
    if not gap <= stage.tolerance:
        return f"after new weights a log-prob is {gap:.3g} nats from theirs: something older is still cached"
    recorded = set(rollout.policy_version.tolist())
    return None if recorded == {VERSION + 1} else f"version {VERSION + 1} was loaded and {recorded} recorded"


def _hands_off(stage: Stage) -> str | None:
    weights = {name: tensor.clone() for name, tensor in stage.policy.model.state_dict().items()}
    prompts, generator = prompts_of(ALL), torch.get_rng_state()
    stage.engine.generate(prompts, WITH_TOP if stage.can.top_tokens else SETTINGS)
    after = stage.policy.model.state_dict()
    changed = [name for name in after if not torch.equal(after[name], weights[name])]
    if changed:
        return f"the weights {changed[0]} were changed"
    if prompts != prompts_of(ALL):
        return "the prompts were changed"
    if not torch.equal(torch.get_rng_state(), generator):
        return "torch's global generator was used; draw from nearstep.common.random_streams"
    return None


def _row_ended(stage: Stage) -> str | None:
    engine = stage.engine
    told: list[int] = []
    ended: list[tuple[list[int], bool]] = []

    def row_ended(row: int, ids: list[int], finished: bool) -> None:
        told.append(row)
        ended.append((ids, finished))

    rollout = engine.generate(prompts_of(ALL), SETTINGS, row_ended)
    if len(set(told)) != len(told) or not set(told) <= set(ALL):
        return f"it told of the rows {told}, of {len(ALL)} prompts"
    last = rollout.last_segments()
    played = list(zip(last.completion_ids(), last.finished.tolist(), strict=True))
    for row, end in zip(told, ended, strict=True):
        if end != played[row]:
            return f"row {row} was told to end with {end[0]}, finished = {end[1]}; the rollout has {played[row]}"
    same = stage.play().completion_ids() == rollout.completion_ids()
    return None if same else "responses differ without row_ended"


def _reopens(stage: Stage) -> str | None:
    stage.play([0, 1])
    stage.engine.close()
    rows = len(stage.play([0, 1]).segment_counts)
    return None if rows == 2 else f"after close and load it generates {rows} of 2 rows"


LAWS: tuple[Law[Stage], ...] = (
    Law("protocol", "it has capabilities, load, generate and close, and always the same capabilities", _protocol),
    Law("layout", "a rollout has one row for each prompt, in order, the prompt first and untouched", layout),
    Law("ends", "a response ends with its first stop token or at its limit, and `finished` says which", ends),
    Law("optional_fields", "turns, segments, versions and model inputs, where there are any, fit", optional_fields),
    Law("no_stop", "without stop tokens every response has its full length", no_stop),
    Law("limits", "the limits of single rows are kept", _limits, applies=lambda stage: stage.can.limits),
    Law("normal", "recorded log-probs are finite, at most 0, and float32 at least", _normal),
    Law(
        "top_tokens",
        "top tokens are recorded if asked for, the sampled one among them",
        _top_tokens,
        applies=lambda stage: stage.can.top_tokens,
    ),
    Law(
        "own_episode",
        "a response depends on prompt and episode alone, not on the batch",
        _own_episode,
        applies=lambda stage: stage.can.own_episode,
    ),
    Law(
        "goes_on",
        "a row that is broken off and goes on is the row that never was",
        goes_on,
        applies=lambda stage: stage.can.goes_on,
    ),
    Law("episodes_differ", "episodes of one prompt are different samples", _episodes_differ),
    Law("seed", "another seed gives other responses", _seed),
    Law("greedy", "greedy responses depend on the prompt alone, as evaluation needs it", _greedy),
    Law(
        "row_ended",
        "it tells of rows as they end, once, and what the rollout holds",
        _row_ended,
        applies=lambda stage: stage.can.row_ended,
    ),
    Law("version", "no response claims weights that were not loaded yet", _version),
    Law("hands_off", "weights, prompts and the global generator stay as they are", _hands_off),
    Law("trainer_logprobs", "recorded log-probs are those that the trainer computes", _trainer_logprobs, False),
    Law("greedy_tokens", "greedy tokens are the most probable ones", _greedy_tokens, False),
    Law(
        "most_probable",
        "the top tokens are the most probable ones",
        _most_probable,
        False,
        applies=lambda stage: stage.can.top_tokens,
    ),
    Law("new_weights", "after load it samples from the newest weights, and records their version", _new_weights, False),
    Law("reopens", "after close it can be loaded again", _reopens),
)
