"""PPO: sample, score, annotate, improve, report. Read this first."""

from nearstep.common.waiting import WATCHDOG
from nearstep.metrics import Metrics
from nearstep.rollout.engine import rest
from nearstep.training.experience import describe, make_experience
from nearstep.training.pretraining import pretrain_critic
from nearstep.training.probes import Probes
from nearstep.training.recipe import Due, Recipe
from nearstep.training.sampling import sample
from nearstep.training.schedules import phases_now
from nearstep.training.state import State
from nearstep.training.update import update


def train(r: Recipe, state: State) -> None:
    """Run all updates that are left; one that was broken off before begins again.

    Raises ModelError where other weights train than the optimizers hold.
    """
    r.learners.require_same_weights()
    state.take_back_unfinished()
    r.checkpoint.load(state)  # a new run and a resumed one: the same line
    r.selection.restore(state)
    r.report.begin(r.introduction, state)
    started = r.evaluator.begin(r.engine, state)
    if started is not None and r.evaluator.has_prompts and r.config.eval_on_start:
        r.report.evaluation(state, started, Due())
    pretrained = pretrain_critic(r, state)
    probes = Probes(r)
    for prompts in r.prompts.batches(after=state.update, until=r.batch.updates, played=state.prompts(r.batch)):
        state.begin_update()
        WATCHDOG.begin_update(state.update)
        r.report.begin_update()
        sampled = sample(prompts, r, state)  # 1 sample, 2 score: again while a gate wants other prompts
        rest(r.engine)
        prompts, rollout, scores = sampled.batch
        state.watch_spread(scores, r.backend)
        with r.clock("experience"):
            experience = make_experience(rollout, scores, r, state, prompts=prompts, kept=sampled.kept)  # 3 annotate
            probed = probes.look(prompts, experience, state.update)
        with r.clock("update"):
            phases = phases_now(r.schedule, state.update, critic_is_ready=state.critic_is_ready)
            metrics, steps = update(sampled.with_stand_ins(experience), phases, r)  # 4 improve
        rates = r.learners.end_update()
        state.end_update(r.batch, steps, r.config.max_broken_updates, sampled.episodes)
        state.watch_critic(experience, scores, r.config, r.backend)
        state.update_kl_coef(experience, r.kl_controller, r.config.kl_estimator, r.batch, r.backend)
        metrics = describe(experience, scores, r) + sampled.metrics + probed + pretrained + metrics
        pretrained = Metrics()  # it was before the first update
        r.report.dropped(state, sampled.dropped)
        due = r.report.step(state, prompts, experience, scores, metrics, rates)  # 5 report
        if due.samples:
            r.report.samples(state, r.evaluator.samples(r.engine, state))
        if due.evaluate:
            due = r.report.evaluation(state, r.evaluator.evaluate(r.engine, state), due)
        with r.clock("save"):
            r.checkpoint.step(state, due, best=due.best)
        if due.stop:
            return
