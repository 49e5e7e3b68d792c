"""PPO: sample, judge, annotate, improve, report. Read this first."""

from nearstep.rollout.engine import generate
from nearstep.training.experience import describe, make_experience
from nearstep.training.recipe import Recipe
from nearstep.training.state import State
from nearstep.training.update import update


def train(r: Recipe, state: State) -> None:
    """Run all updates that are left."""
    for prompts in r.prompts.batches(after=state.update, until=r.batch.updates):
        state.begin_update()
        r.report.begin_update()
        with r.clock("generate"), r.rewards.early(prompts) as early:
            r.engine.load(r.models.policy, version=state.update)
            rollout = generate(r.engine, prompts, early, top_k=r.trust_region.top_k)  # 1 sample
        with r.clock("score"):
            scores = r.rewards(prompts, rollout, early)  # 2 judge
            state.update_score_moments(scores, r.config, r.backend)
        with r.clock("experience"):
            experience = make_experience(rollout, scores, r, state)  # 3 annotate
        with r.clock("update"):
            phases = r.schedule.phases(state.update)
            metrics, steps = update(experience, phases, r)  # 4 improve
        state.end_update(r.batch, steps)
        state.update_kl_coef(experience, r.kl_controller, r.config.kl_estimator, r.batch, r.backend)
        wishes = r.report.step(
            state, prompts, experience, scores, describe(experience, scores, r) + metrics
        )  # 5 report
        if wishes.evaluate:
            r.report.evaluation(state, r.evaluate())
        if wishes.save:
            r.checkpoint.save(state)
        if wishes.stop:
            return
