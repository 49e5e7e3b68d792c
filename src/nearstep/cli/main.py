"""Where the command line starts: which commands there are, and what a run ends with."""

import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from nearstep import __version__
from nearstep.cli import (
    check,
    compare,
    demo,
    doctor,
    evaluate,
    fork,
    generate,
    judge,
    parity,
    ppo,
    prepare,
    replay,
    report,
    reward,
    rewards,
    score,
    serve_engine,
    serve_reward,
    watch,
)
from nearstep.cli.broken_pipe import silence_unread_streams
from nearstep.cli.command import Command
from nearstep.cli.help import command_help, overview
from nearstep.common.errors import ConfigError, NearstepError, WaitError
from nearstep.common.secrets import without_secrets
from nearstep.common.spelling import nearest
from nearstep.common.telling import tell, tell_launcher
from nearstep.common.waiting import end_soon
from nearstep.config.engine_server import ENGINE_SERVER_SECTIONS, EngineServerOptions
from nearstep.config.evaluation import EVAL_SECTIONS, EvalConfig
from nearstep.config.generating import GENERATE_SECTIONS, GenerateOptions
from nearstep.config.judge_files import SCORE_SECTIONS, SERVE_SECTIONS, ScoreOptions, ServeOptions
from nearstep.config.judges import JUDGE_SECTIONS, JudgeOptions
from nearstep.config.parity import PARITY_SECTIONS, ParityOptions
from nearstep.config.ppo import SECTIONS as PPO_SECTIONS
from nearstep.config.ppo import PPOConfig
from nearstep.config.prepare import PrepareOptions
from nearstep.config.recipes import RECIPES
from nearstep.config.reward_model import SECTIONS as REWARD_SECTIONS
from nearstep.config.reward_model import RewardConfig
from nearstep.scale.launcher import end_with_launcher

COMMANDS: tuple[Command[Any], ...] = (
    Command(
        name="ppo",
        summary="Train a policy with PPO against a reward model or reward functions.",
        settings=PPOConfig,
        sections=PPO_SECTIONS,
        begins=ppo.ppo_begins,
        problems=ppo.ppo_problems,
        run=ppo.run_ppo,
        recipes=RECIPES,
        note=rewards.NOTE,
    ),
    Command(
        name="fork",
        summary="Begin a new run from a checkpoint of another: nearstep fork RUN@UPDATE --output_dir NEW.",
        settings=PPOConfig,
        sections=PPO_SECTIONS,
        begins=ppo.ppo_begins,
        problems=ppo.ppo_problems,
        run=ppo.run_ppo,
        words=fork.fork_words,
        note=fork.NOTE,
    ),
    Command(
        name="replay",
        summary="Compute one row of a run again and print every number on its way to the gradient.",
        settings=replay.ReplayOptions,
        sections=replay.SECTIONS,
        begins=lambda settings: f"update {settings.update} of {settings.run}",
        run=replay.run_replay,
        operand="run",
    ),
    Command(
        name="report",
        summary="Write a run as one HTML file: curves, updates, samples, tokens; it opens from disk, without network.",
        settings=report.ReportOptions,
        sections=report.SECTIONS,
        run=report.run_report,
        operand="run",
    ),
    Command(
        name="watch",
        summary="Serve the same page while a run goes on, on this machine.",
        settings=watch.WatchOptions,
        sections=watch.SECTIONS,
        run=watch.run_watch,
        operand="run",
    ),
    Command(
        name="compare",
        summary="Several runs over each other: seeds as mean with band, settings that differ, last and best values.",
        settings=compare.CompareOptions,
        sections=compare.SECTIONS,
        run=compare.run_compare,
        operand="runs",
    ),
    Command(
        name="rewards",
        summary="The reward functions that are built in: what they measure, their ranges, needs and weaknesses.",
        settings=rewards.RewardsOptions,
        sections=rewards.SECTIONS,
        run=rewards.run_rewards,
        operand="names",
    ),
    Command(
        name="reward",
        summary="Train a reward model from preference pairs, or from what other rewards say.",
        settings=RewardConfig,
        sections=REWARD_SECTIONS,
        begins=reward.reward_begins,
        problems=reward.reward_problems,
        run=reward.run_reward,
        note=reward.NOTE,
    ),
    Command(
        name="generate",
        summary="Write completions of a model, greedy or sampled, to a file.",
        settings=GenerateOptions,
        sections=GENERATE_SECTIONS,
        begins=lambda settings: f"completions of {settings.model_name_or_path}, into {settings.output}",
        problems=generate.generate_problems,
        run=generate.run_generate,
        note=generate.NOTE,
    ),
    Command(
        name="eval",
        summary="Measure a model, a file of completions or a reward model: each figure with n and an interval.",
        settings=EvalConfig,
        sections=EVAL_SECTIONS,
        begins=evaluate.eval_begins,
        problems=evaluate.eval_problems,
        run=evaluate.run_evaluation,
        note=evaluate.NOTE,
    ),
    Command(
        name="score",
        summary="Score the completions of a file, or of a run, by exactly the path that training uses.",
        settings=ScoreOptions,
        sections=SCORE_SECTIONS,
        begins=lambda settings: f"scores of {settings.input}, into {settings.output}",
        problems=score.score_problems,
        run=score.run_score,
    ),
    Command(
        name="judge",
        summary="Compare two files of completions, or completions with references, by a judge.",
        settings=JudgeOptions,
        sections=JUDGE_SECTIONS,
        begins=lambda settings: f"judge {settings.judge} compares {' with '.join(settings.files)}",
        problems=judge.judge_problems,
        run=judge.run_judge,
        operand="files",
        note=judge.NOTE,
    ),
    Command(
        name="serve-reward",
        summary="Serve a reward model or reward functions over HTTP, for reward_url.",
        settings=ServeOptions,
        sections=SERVE_SECTIONS,
        begins=lambda settings: f"a reward server on {settings.host}",
        problems=serve_reward.serve_problems,
        run=serve_reward.run_serve,
    ),
    Command(
        name="serve-engine",
        summary="Start a vLLM server as engine = vllm_server needs it, for engine_url.",
        settings=EngineServerOptions,
        sections=ENGINE_SERVER_SECTIONS,
        problems=serve_engine.serve_engine_problems,
        run=serve_engine.run_serve_engine,
        note=serve_engine.NOTE,
    ),
    Command(
        name="parity",
        summary="Compare engines with the trainer on a model's own weights, before a run.",
        settings=ParityOptions,
        sections=PARITY_SECTIONS,
        begins=lambda settings: f"engine against trainer: {settings.model_name_or_path}",
        problems=parity.parity_problems,
        run=parity.run_parity,
        operand="model_name_or_path",
        note=parity.NOTE,
    ),
    Command(
        name="prepare",
        summary="Tokenise prompts ahead of a run, by several processes.",
        settings=PrepareOptions,
        sections=prepare.SECTIONS,
        problems=prepare.prepare_problems,
        run=prepare.run_prepare,
    ),
    Command(
        name="demo",
        summary="Supervised start, reward model and PPO on a small made-up task, on a CPU, offline.",
        settings=demo.DemoOptions,
        sections=demo.SECTIONS,
        begins=lambda settings: f"the demo, into {settings.output}",
        run=demo.run_demo,
    ),
    Command(
        name="doctor",
        summary="Say whether a run is well, what ails it and what to do; without a run, whether the machine is fit.",
        settings=doctor.DoctorOptions,
        sections=doctor.SECTIONS,
        run=doctor.run_doctor,
        operand="run",
        needs_operand=False,
        note=doctor.NOTE,
    ),
    Command(
        name="check",
        summary="Hold an object of your own to the laws of its axis: a trust region, advantage, KL controller, critic "
        "schedule, loss aggregation, auxiliary loss, value head, correction, sampler, gate, reward, judge, engine or "
        "backend.",
        settings=check.CheckOptions,
        sections=check.SECTIONS,
        begins=lambda settings: f"the laws for {settings.object}",
        run=check.run_check,
        operand="object",
    ),
)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command that `words` (by default those of the command line) ask for; return the exit code.

    0 done, 1 failed (or nobody reads on: `nearstep --help | head -1`), 2 wrongly asked, 130 interrupted, 143 ended, or
    what the command gave.
    """
    try:
        code = _answer(sys.argv[1:] if words is None else words)
        if sys.stdout is not None:  # it is where the shell closed it
            sys.stdout.flush()  # at the interpreter's end a broken pipe could no more be caught
    except BrokenPipeError:
        if not silence_unread_streams():
            raise
        return 1
    return code


def _answer(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview(COMMANDS))
        return 0
    if words[0] == "--version":
        print(f"nearstep {__version__}")
        return 0
    names = [command.name for command in COMMANDS]
    if words[0] not in names:
        meant = f"; did you mean {near}?" if (near := nearest(words[0], names)) else f"; there are {', '.join(names)}"
        return _fail(f"unknown command {words[0]}{meant}", 2)
    return _run(COMMANDS[names.index(words[0])], words[1:])


def _run(command: Command[Any], words: Sequence[str]) -> int:
    if "-h" in words or "--help" in words:
        print(command_help(command))
        return 0
    try:
        settings = command.read(words)
        end_with_launcher()
        if command.begins is not None:
            tell(f"{command.begins(settings)}. Loading torch and transformers …")
        code = command.run(settings)
    except ConfigError as error:
        return _fail(str(error), 2)
    except NearstepError as error:
        if isinstance(error, WaitError):
            end_soon()  # whoever hangs may have threads, for which the interpreter would wait
        return _fail(str(error), 1, error)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (Exception, SystemExit) as error:
        tell_launcher(without_secrets("".join(traceback.format_exception_only(error)).strip()), error)
        sys.excepthook = _print_without_secrets
        raise
    return code or 0


def _print_without_secrets(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback of a fault of ours, or of a library, whose messages may quote an address or a token."""
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _fail(message: str, code: int, error: Exception | None = None) -> int:
    tell_launcher(message, error)
    print(f"nearstep: {message}", file=sys.stderr)
    return code
