"""How models are saved: weights first, whole folders in one step, and what could fail at the end is tried before."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nearstep import ModelError, TrainingError
from nearstep.common import whole_folder as folders
from nearstep.common.whole_folder import whole_folder
from nearstep.models.saving import rehearse, require_space, write_each, write_model
from tests.tiny import byte_tokenizer, tiny_causal_lm


class Unsaved:
    """JSON knows no such thing."""


def wrong_generation(model):
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.5


def unused_top_k(model):
    model.generation_config.do_sample, model.generation_config.top_k = False, 7


def many_answers(model):
    model.generation_config.do_sample, model.generation_config.num_return_sequences = False, 3


def wrong_config(model):
    model.config.mine = Unsaved()


GENERATION = [wrong_generation, unused_top_k, many_answers]


def type_in_tokenizer(tokenizer):
    tokenizer.init_kwargs["torch_dtype"] = torch.bfloat16
    return tokenizer


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        *[(spoil, "the generation config .ValueError: ") for spoil in GENERATION],
        (wrong_config, "the configuration"),
    ],
)
def test_what_transformers_refuses_to_save_is_refused_before_the_run(tmp_path, spoil, words):
    model = tiny_causal_lm()
    spoil(model)
    with pytest.raises(ModelError, match=f"(?s)^model: this cannot be saved: {words}.*mend it first"):
        rehearse(tmp_path / "out" / "policy", "model", model, byte_tokenizer(), "")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tokenizer_that_holds_a_type_is_refused_before_the_run(tmp_path):
    with pytest.raises(ModelError, match=r"this cannot be saved: the tokenizer \(TypeError: .*not JSON serializable"):
        rehearse(tmp_path / "policy", "model", tiny_causal_lm(), type_in_tokenizer(byte_tokenizer()), "")


@pytest.mark.parametrize("spoil", [*GENERATION, wrong_config])
def test_at_the_end_weights_are_written_whatever_else_fails(tmp_path, spoil):
    """As where a callback has changed something in the middle of a run."""
    model = tiny_causal_lm()
    target = tmp_path / "policy"
    write_model(target, model, None, byte_tokenizer(), "card")
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    spoil(model)
    kept = model.generation_config
    with pytest.raises(
        TrainingError, match=r"policy holds the weights, but not the (generation config|configuration) \("
    ):
        write_model(target, model, None, byte_tokenizer(), "card")
    assert model.generation_config is kept
    found = AutoModelForCausalLM.from_pretrained(target, config=tiny_causal_lm().config)
    for (name, ours), theirs in zip(model.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert (target / "README.md").read_text() == "card"
    assert len(AutoTokenizer.from_pretrained(target)) == 258


def test_the_models_own_generation_config_is_saved(tmp_path):
    model = tiny_causal_lm()
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.25
    write_model(tmp_path / "policy", model, None, byte_tokenizer(), "")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").generation_config
    assert (found.do_sample, found.temperature) == (True, 0.25)


def test_one_failure_costs_no_other_folder():
    written = []

    def fail():
        raise OSError("no space")

    with pytest.raises(TrainingError, match="OSError: no space; OSError: no space"):
        write_each([fail, lambda: written.append("value"), fail])
    assert written == ["value"]


def test_names_that_are_taken_and_places_that_cannot_be_written(tmp_path, monkeypatch):
    model, tokenizer = tiny_causal_lm(), byte_tokenizer()
    (tmp_path / "policy").write_text("mine")
    with pytest.raises(TrainingError, match="policy is a file, and the model is to be saved there"):
        rehearse(tmp_path / "policy", "model", model, tokenizer, "")
    with pytest.raises(TrainingError, match=r"saving to .* failed: .*is a file"):
        write_model(tmp_path / "policy", model, None, tokenizer, "")
    assert (tmp_path / "policy").read_text() == "mine"
    with pytest.raises(TrainingError, match=r"nothing can be saved in .*policy/out: .*Change output_dir"):
        rehearse(tmp_path / "policy" / "out" / "policy", "model", model, tokenizer, "")
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(TrainingError, match="Read-only file system"):
        rehearse(tmp_path / "ro" / "policy", "model", model, tokenizer, "")


def test_a_disk_without_room_is_told_before_the_run(tmp_path, monkeypatch):
    """A folder of an earlier run gives its room back once the new one stands."""
    model = tiny_causal_lm()
    size = sum(weight.numel() * 4 for weight in model.parameters())
    free = {"bytes": 2 * size}
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free["bytes"]}))
    policy, value = (tmp_path / "policy", model), (tmp_path / "value", model)
    require_space([policy, value])
    free["bytes"] -= 1
    with pytest.raises(TrainingError, match=f"value needs {size:,} bytes and {size - 1:,} are free"):
        require_space([policy, value])
    write_model(tmp_path / "policy", model, None, byte_tokenizer(), "")
    require_space([policy, value])
    free["bytes"] = size - 1
    with pytest.raises(TrainingError, match="policy needs"):
        require_space([policy, value])


# --- whole folders


def write(folder, text):
    with whole_folder(folder) as unfinished:
        (unfinished / "file").write_text(text or "half")
        if text is None:
            raise ValueError("no")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(folders, "_exchanged", lambda one, other: False)
    folder = tmp_path / "policy"
    for text in ("old", "new"):
        write(folder, text)
        assert (folder / "file").read_text() == text
    with pytest.raises(ValueError, match="no"):
        write(folder, None)
    assert (folder / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_there_is_no_moment_without_the_folder(tmp_path, monkeypatch):
    """After every single renaming the old folder or the new one stands there."""
    folder = tmp_path / "policy"
    write(folder, "old")
    (tmp_path / "other").mkdir()
    if not folders._exchanged(folder, tmp_path / "other"):
        pytest.skip("this disk exchanges no folders")
    rename = Path.rename

    def watched(path, target):
        moved = rename(path, target)
        assert folder.exists()
        return moved

    monkeypatch.setattr(Path, "rename", watched)
    write(folder, "new")
    assert (folder / "file").read_text() == "new"


def test_a_death_between_the_two_names_is_mended(tmp_path):
    (tmp_path / ".policy.former").mkdir()
    (tmp_path / ".policy.former" / "file").write_text("old")
    with pytest.raises(ValueError, match="no"):
        write(tmp_path / "policy", None)
    assert (tmp_path / "policy" / "file").read_text() == "old"


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "policy").symlink_to(tmp_path / "disk")
    write(tmp_path / "policy", "new")
    assert (tmp_path / "policy").is_symlink()
    assert (tmp_path / "disk" / "file").read_text() == "new"
    with pytest.raises(NotADirectoryError, match="is a file"):
        write(tmp_path / "policy" / "file", "x")
