"""Samples reach each tracker as the table that it shows, with text of a model as it is."""

from types import SimpleNamespace

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback

from nearstep.config.ppo import PPOConfig
from nearstep.reports.tracker_tables import COLUMNS, markdown_table, track_samples
from nearstep.training.evaluated import Sample
from tests.reports.helpers import make_callbacks

ROWS = [Sample("q | x", "now\n*bold* <b>", 0.5, "before", 0.25), Sample("q2", "now2", float("nan"))]
LINES = [[3, "q | x", "now\n*bold* <b>", 0.5, "before", 0.25], [3, "q2", "now2", None, None, None]]


class FakeTracker:
    """Records what a tracker's module is asked for."""

    def __init__(self):
        self.logged = []

    def Table(self, **given):
        return given

    def log(self, given):
        self.logged.append(given)


def of_kind(kind, **attributes):
    """A callback of a tracker that is not installed."""
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made


def test_tensorboard_gets_markdown(tmp_path):
    callbacks = make_callbacks(PPOConfig(output_dir=str(tmp_path), report_to=("tensorboard",)))
    track_samples(callbacks.trackers, 1, ROWS)  # before the run has begun there is nowhere to write
    callbacks.begin()
    track_samples(callbacks.trackers, 3, ROWS)
    callbacks.end()
    (folder,) = {file.parent for file in tmp_path.rglob("*tfevents*") if "samples" in read_tags(file.parent)}
    (event,) = EventAccumulator(str(folder)).Reload().Tensors("samples/text_summary")
    assert event.step == 3
    assert event.tensor_proto.string_val[0].decode() == markdown_table(LINES)


def read_tags(folder):
    return " ".join(EventAccumulator(str(folder)).Reload().Tags()["tensors"])


def test_markdown_by_hand():
    assert markdown_table(LINES).splitlines() == [
        "| update | query | response | score | start_response | start_score |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 3 | q \\| x | now \\*bold\\* \\<b\\> | 0.5 | before | 0.25 |",
        "| 3 | q2 | now2 |  |  |  |",
    ]


def test_wandb_and_trackio_get_tables_of_theirs_and_others_nothing():
    wandb, trackio = FakeTracker(), FakeTracker()
    trackers = [
        of_kind(WandbCallback, _wandb=wandb), of_kind(TrackioCallback, _trackio=trackio),
        of_kind(MLflowCallback, _auto_end_run=False),
        of_kind(WandbCallback, _wandb=None), of_kind(TensorBoardCallback, tb_writer=None), SimpleNamespace(),
    ]  # fmt: skip
    track_samples(trackers, 3, ROWS)
    assert wandb.logged == [{"samples": {"columns": list(COLUMNS), "data": LINES}, "train/global_step": 3}]
    (found,) = trackio.logged
    assert found["train/global_step"] == 3
    frame = found["samples"]["dataframe"]
    assert list(frame.columns) == list(COLUMNS)
    assert frame.astype(object).where(frame.notna(), None).to_numpy().tolist() == LINES
