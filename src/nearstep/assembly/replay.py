"""How one row of a run that is over, or stopped, is computed again."""

import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.checkpoint.start import batch_of_run
from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.reports.run_folder import CHECKPOINT
from nearstep.training.experience import make_experience
from nearstep.training.pretraining import pretrain_critic
from nearstep.training.row_trace import TokenTrace, trace_row
from nearstep.training.sampling import sample
from nearstep.training.state import State

WIDTH = 80
WAY_TO_RATIO = ("sampled_logprob", "old_logprob", "logprob", "ref_logprob", "kl", "ratio", "region_weight")
WAY_TO_GRADIENT = ("value", "reward", "advantage", "whitened_advantage", "return_", "gradient")


@dataclass(frozen=True)
class ReplayedRow:
    """A row of an update: its texts, its score, and every token's numbers."""

    update: int
    row: int
    prompt: str
    response: str
    score: float
    texts: Sequence[str]  # of each token
    tokens: Sequence[TokenTrace]

    def text(self) -> str:
        """For a terminal: prompt and response, then two tables."""
        console = Console(file=io.StringIO(), width=WIDTH, highlight=False, markup=False)
        console.print(f"update {self.update}, row {self.row}, score {self.score:.6g}")
        console.print(f"prompt    {self.prompt!r}\nresponse  {self.response!r}")
        for names in (WAY_TO_RATIO, WAY_TO_GRADIENT):
            table = Table("token", *(name.strip("_").replace("_", " ") for name in names))
            for shown, token in zip(self.texts, self.tokens, strict=True):
                table.add_row(repr(shown), *(_shown(vars(token)[name]) for name in names))
            console.print(table)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()

    def write(self, path: Path) -> None:
        """One JSON object per token."""
        lines = [
            json.dumps({"text": text} | {name.strip("_"): value for name, value in asdict(token).items()})
            for text, token in zip(self.texts, self.tokens, strict=True)
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def replay_row(config: PPOConfig, run: Path, *, update: int, row: int, inputs: RunInputs | None = None) -> ReplayedRow:
    """Play an update of a run again up to its first gradient, from the checkpoint before it, and trace a row.

    On a CPU the rollout has the same bits; rewards are asked again. Nothing is written to the run's folder. `inputs`
    are the objects that the run was given in Python. Raises
    ConfigError where the checkpoint or the row is not there.
    """
    if config.max_staleness > 0:
        raise ConfigError(
            "this run had max_staleness: its rows were sampled by weights of earlier updates, at moments that no "
            "checkpoint knows, so that none can be computed again"
        )
    before = run / f"{CHECKPOINT}{update - 1}"
    fork = _forked_after(config, update - 1)
    is_of_fork = fork is not None and not before.is_dir()  # then the fork's first update, or one of its parent's
    if update > 1 and not before.is_dir() and not is_of_fork:
        raise ConfigError(
            f"update {update} is computed from {before.name}, and {run} has none. Give an update after a checkpoint"
        )
    with tempfile.TemporaryDirectory() as elsewhere:
        settings = replace(
            config, output_dir=elsewhere, resume=None if update == 1 or is_of_fork else str(before),
            fork_from=fork if is_of_fork else None, report_to=(), push_to_hub=False, dump_rollouts=None,
            batch_size=config.batch_size or batch_of_run(run),  # here runs one process, there it may have been several
            dp_shard=1, dp_replicate=None, tp_size=1, ep_size=1, sp_size=1, zero_stage=None, deepspeed=None,
        )  # fmt: skip
        r = assemble(settings, inputs)
        state = State()
        r.checkpoint.load(state)
        r.selection.restore(state)
        pretrain_critic(r, state)
        batches = r.prompts.batches(after=state.update, until=update, played=state.prompts(r.batch))
        drawn = next(batches)
        state.begin_update()
        sampled = sample(drawn, r, state)
        prompts, rollout, scores = sampled.batch
        experience = make_experience(rollout, scores, r, state, prompts=prompts, kept=sampled.kept)
        r.rewards.close()
        r.engine.close()
    if row >= len(experience):
        raise ConfigError(f"row = {row}: update {update} has rows 0 to {len(experience) - 1}")
    tokens = trace_row(experience, row, r)
    ids = [token.token for token in tokens]
    return ReplayedRow(
        update,
        row,
        prompt=r.tokenizer.decode(prompts.ids[row]),
        response=r.tokenizer.decode(ids),
        score=float(experience.scores[row]),
        texts=[r.tokenizer.decode([number]) for number in ids],
        tokens=tokens,
    )


def _forked_after(config: PPOConfig, update: int) -> str | None:
    """The checkpoint that the run was forked from, if it stands after an update."""
    place = config.fork_from
    return place if place is not None and Path(place).name == f"{CHECKPOINT}{update}" else None


def _shown(value: float | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.4g}"
