"""What the data settings do to a run: names, formats, mixtures, held-out rows, streams, templates, bad rows."""

import json
import threading

import datasets
import pytest
from transformers import AutoTokenizer

from nearstep import ConfigError, DataError, PPOConfig, PPOTrainer, RewardError
from nearstep.config.data import PROMPT_TYPES
from nearstep.data.templates import TEMPLATES
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import low_ids


def trainer_of(folder, rows, *, eval_dataset=None, scorer=low_ids, **settings):
    config = PPOConfig(**{
        "output_dir": str(folder), "use_cpu": True, "response_length": 4, "total_episodes": 16, "batch_size": 8,
        "num_sample_generations": 0, "learning_rate": 1e-3, **settings,
    })  # fmt: skip
    return PPOTrainer(
        args=config, processing_class=byte_tokenizer(), model=tiny_causal_lm(), reward_funcs=scorer,
        train_dataset=rows, eval_dataset=eval_dataset,
    )  # fmt: skip


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def numbered(count, letter="p"):
    return [{"prompt": f"{letter}{number}", "number": number} for number in range(count)]


def test_two_updates_on_renamed_columns_of_a_mixture(tmp_path):
    for letter in "ab":
        rows = [{"question": row["prompt"]} for row in numbered(30, letter)]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{letter}.parquet")
    trainer = trainer_of(
        tmp_path, None, dataset_name=[str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")],
        dataset_weights=[3, 1], columns={"prompt": "question"},
    )  # fmt: skip
    assert "75.0% of what is played comes from here" in trainer.recipe.introduction
    trainer.train()
    for update in (1, 2):
        played = [row["prompt"] for row in lines(tmp_path, "rollouts.jsonl") if row["update"] == update]
        assert [prompt[0] for prompt in played].count("a") == 6


def test_the_introduction_names_the_format(tmp_path):
    row = {"instruction": "add", "input": "1 2", "output": "3"}
    assert "10 of 10 rows, format alpaca" in trainer_of(tmp_path, [row] * 10).recipe.introduction
    assert "format query" in trainer_of(tmp_path, [{**row, "query": "a"}], dataset_format="query").recipe.introduction


def test_bad_rows_end_the_run_or_are_dropped_and_told(tmp_path):
    rows = [*numbered(9), {"prompt": ""}, {"prompt": 3}, {"number": 3}]
    with pytest.raises(DataError, match=r"3 of 12 rows of data set 'train_dataset'"):
        trainer_of(tmp_path, rows)
    told = trainer_of(tmp_path, rows, on_bad_row="drop").recipe.introduction
    assert "9 of 12 rows, format prompt" in told
    assert (
        "3 of 12 rows were left out: 1 empty, 1 of the wrong type, 1 without the column. The first is row index 9,"
        in told
    )


class TestEvaluation:
    def test_rows_are_held_out_and_never_trained_on(self, tmp_path):
        trainer = trainer_of(tmp_path, numbered(20), num_eval_rows=5, num_generations=1, total_episodes=64)
        held_out = {chunk_row for chunk in self.chunks(trainer) for chunk_row in chunk}
        trained = {row for batch in trainer.recipe.prompts.batches(after=0, until=8) for row in batch.columns["number"]}
        assert (len(held_out), len(trained)) == (5, 15)
        assert "5 prompts, drawn by the seed, are held out to evaluate on." in trainer.recipe.introduction
        assert held_out.isdisjoint(trained)
        again = trainer_of(tmp_path, numbered(20), num_eval_rows=5)
        assert {row for chunk in self.chunks(again) for row in chunk} == held_out
        other = trainer_of(tmp_path, numbered(20), num_eval_rows=5, seed=7)
        assert {row for chunk in self.chunks(other) for row in chunk} != held_out

    def test_a_part_of_the_evaluation_data(self, tmp_path):
        trainer = trainer_of(tmp_path, numbered(4), eval_dataset=numbered(50, "e"), num_eval_rows=6)
        assert sum(len(chunk) for chunk in self.chunks(trainer)) == 6
        trainer = trainer_of(tmp_path, numbered(4), eval_dataset=numbered(5, "e"), num_eval_rows=6)
        assert sum(len(chunk) for chunk in self.chunks(trainer)) == 5

    def test_more_than_there_are(self, tmp_path):
        with pytest.raises(ConfigError, match="num_eval_rows = 4 leaves nothing to train on: there are 4 prompts"):
            trainer_of(tmp_path, numbered(4), num_eval_rows=4)

    def test_copies_among_the_training_prompts_are_told(self, tmp_path):
        trainer = trainer_of(tmp_path, numbered(4) * 5, num_eval_rows=10)
        assert "of the 10 prompts to evaluate on also stand among those to train on" in trainer.recipe.introduction

    def test_several_data_sets(self, tmp_path):
        trainer = trainer_of(
            tmp_path, numbered(4), eval_dataset=[datasets.Dataset.from_list(numbered(count)) for count in (3, 2)]
        )
        assert sum(len(chunk) for chunk in self.chunks(trainer)) == 5

    @staticmethod
    def chunks(trainer):
        return [chunk.columns["number"] for chunk in trainer.recipe.evaluator.sets[0].chunks]


class TestStreams:
    def test_two_updates_from_a_file(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in numbered(400)))
        trainer = trainer_of(tmp_path, None, dataset_name=str(path), streaming=True, shuffle_buffer=20, num_eval_rows=3)
        assert "100 of the first 103 rows, format prompt" in trainer.recipe.introduction
        assert "a.jsonl', split 'train', are held out to evaluate on." in trainer.recipe.introduction
        assert "Prompts are read while they are played" in trainer.recipe.introduction
        trainer.train()
        played = [int(row["prompt"][1:]) for row in lines(tmp_path, "rollouts.jsonl")]
        assert len(set(played)) == 16
        assert min(played) >= 3
        assert max(played) < 3 + 20 + 16
        assert [entry["epoch"] for entry in lines(tmp_path, "metrics.jsonl")] == [0.5, 1.0, 1.0]

    def test_an_iterable_data_set_is_a_stream(self, tmp_path):
        rows = datasets.Dataset.from_list(numbered(30)).to_iterable_dataset()
        trainer = trainer_of(tmp_path, rows, shuffle_dataset=False)
        [batch] = trainer.recipe.prompts.batches(after=1, until=2)
        assert batch.columns["number"] == list(range(8, 16))

    def test_with_reward_workers_the_numbers_are_the_same_and_no_thread_is_left(self, tmp_path, capfd):
        rows = datasets.Dataset.from_list(numbered(400)).to_iterable_dataset()
        for name, changes in {"here": {}, "there": {"reward_workers": 1}}.items():
            trainer_of(tmp_path / name, rows, num_generations=2, **changes).train()
        assert lines(tmp_path / "here", "rollouts.jsonl") == lines(tmp_path / "there", "rollouts.jsonl")
        assert "TOKENIZERS_PARALLELISM" not in capfd.readouterr().err
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("prompts")]

    def test_an_update_that_fails_leaves_no_thread(self, tmp_path):
        def scorer(completions, **columns):
            assert [thread for thread in threading.enumerate() if thread.name.startswith("prompts")]
            raise ZeroDivisionError("no")

        rows = datasets.Dataset.from_list(numbered(400)).to_iterable_dataset()
        with pytest.raises(RewardError, match="raised ZeroDivisionError: 'no'"):
            trainer_of(tmp_path, rows, scorer=scorer).train()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("prompts")]

    def test_a_stream_has_a_tokenizer_of_its_own(self, tmp_path):
        rows = datasets.Dataset.from_list(numbered(400)).to_iterable_dataset()
        recipe = trainer_of(tmp_path, rows).recipe
        [stream] = recipe.prompts.streams
        assert stream.reader.tokenizer.tokenizer is not recipe.tokenizer
        assert stream.reader.tokenizer.tokenizer.backend_tokenizer is not recipe.tokenizer.backend_tokenizer

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"total_episodes": None}, "total_episodes"),
            ({"train": [1, 2]}, "need dataset_weights"),
            ({"rows": [{"message_id": "a", "parent_id": None, "text": "x", "role": "prompter"}]}, "cannot be streamed"),
        ],
    )
    def test_what_streams_cannot_do(self, tmp_path, settings, said):
        rows = datasets.Dataset.from_list(settings.pop("rows", numbered(3))).to_iterable_dataset()
        rows = [rows, rows] if settings.pop("train", None) else rows
        with pytest.raises((ConfigError, DataError), match=said):
            trainer_of(tmp_path, rows, **settings)


class TestPromptTypes:
    def test_settings_and_templates_name_the_same(self):
        assert ("none", "raw", "raw_bos", "chat", *TEMPLATES) == PROMPT_TYPES

    @pytest.mark.parametrize(
        ("prompt_type", "decoded", "shown"),
        [
            ("none", "p0", "p0"),
            ("raw", "p0", "p0"),
            ("chat", "<|user|>p0<eos><|assistant|>", [{"role": "user", "content": "p0"}]),
            (
                "chatml", "<|im_start|>user\np0<|im_end|>\n<|im_start|>assistant\n",
                [{"role": "user", "content": "p0"}],
            ),
        ],
    )  # fmt: skip
    def test_text(self, tmp_path, prompt_type, decoded, shown):
        trainer = trainer_of(tmp_path, numbered(1), prompt_type=prompt_type)
        [batch] = trainer.recipe.prompts.batches(after=0, until=1)
        assert byte_tokenizer().decode(batch.ids[0]) == decoded
        assert batch.inputs[0] == shown

    def test_a_named_template_goes_with_the_policy_and_leaves_the_users_tokenizer_alone(self, tmp_path):
        trainer = trainer_of(tmp_path, numbered(4), prompt_type="chatml")
        assert "The marks of prompt_type chatml are no single tokens of this tokenizer" in trainer.recipe.introduction
        trainer.train()
        assert AutoTokenizer.from_pretrained(tmp_path / "policy").chat_template == TEMPLATES["chatml"]

    def test_a_template_of_ones_own(self, tmp_path):
        (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}!")
        trainer = trainer_of(tmp_path, numbered(1), prompt_type=str(tmp_path / "mine.jinja"))
        [batch] = trainer.recipe.prompts.batches(after=0, until=1)
        assert byte_tokenizer().decode(batch.ids[0]) == "p0!"
        with pytest.raises(ConfigError, match="names a template that cannot be read"):
            trainer_of(tmp_path, numbered(1), prompt_type="absent.jinja")

    def test_raw_takes_no_messages_and_raw_bos_needs_bos(self, tmp_path):
        with pytest.raises(DataError, match="prompt_type raw takes text, no messages"):
            trainer_of(tmp_path, [{"prompt": [{"role": "user", "content": "a"}]}], prompt_type="raw")
        with pytest.raises(ConfigError, match="raw_bos begins prompts with BOS, and the tokenizer has none"):
            trainer_of(tmp_path, numbered(1), prompt_type="raw_bos")


THINKING = (
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}{% if add_generation_prompt %}assistant:"
    "{% if not enable_thinking | default(true) %}<off>{% endif %}{% endif %}{{ note | default('') }}"
)


class TestTemplateKeywords:
    def prompts(self, tmp_path, rows, **settings):
        """The prompts of the first update and of the evaluation, and what is told of them."""
        (tmp_path / "thinking.jinja").write_text(THINKING)
        settings = {"prompt_type": str(tmp_path / "thinking.jinja"), "shuffle_dataset": False, **settings}
        recipe = trainer_of(tmp_path, rows, eval_dataset=rows, **settings).recipe
        [batch] = recipe.prompts.batches(after=0, until=1)
        texts = [byte_tokenizer().decode(ids) for ids in batch.ids]
        shown = [byte_tokenizer().decode(ids) for chunk in recipe.evaluator.sets[0].chunks for ids in chunk.ids]
        assert shown == texts[: len(shown)]
        return texts[: len(rows)], recipe.introduction

    def test_the_setting_reaches_every_prompt_and_a_row_wins(self, tmp_path):
        rows = [
            {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": given}
            for given in (None, {"enable_thinking": True}, '{"note": "!"}', {"enable_thinking": None})
        ]
        texts, _ = self.prompts(tmp_path, rows)
        assert texts == ["user:a;assistant:", "user:a;assistant:", "user:a;assistant:!", "user:a;assistant:"]
        given = {"enable_thinking": False}
        for source in (rows, datasets.Dataset.from_list([{**row, "chat_template_kwargs": None} for row in rows])):
            texts, told = self.prompts(tmp_path, source, chat_template_kwargs=given)
            off = "user:a;assistant:<off>"
            assert texts == ([off, "user:a;assistant:", off + "!", off] if source is rows else [off] * 4)
            assert "does not read" not in told
        with pytest.raises(ConfigError, match=r"chat_template_kwargs = .* must be a mapping without tools"):
            self.prompts(tmp_path, rows, chat_template_kwargs={"tools": []})
        with pytest.raises(DataError, match="row index 0, column 'chat_template_kwargs': expected a mapping such as"):
            self.prompts(tmp_path, [{**rows[0], "chat_template_kwargs": "no json"}])

    def test_keywords_without_effect_are_told(self, tmp_path):
        chats = [{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"colour": 1}}]
        told = self.prompts(tmp_path, chats, chat_template_kwargs={"enable": True})[1]
        assert "The chat template does not read 'enable, colour' of chat_template_kwargs." in told
        told = self.prompts(tmp_path, [{"prompt": "a"}], chat_template_kwargs={"note": "!"}, prompt_type="none")[1]
        assert "chat_template_kwargs has no effect: no prompt is a chat." in told


class TestTextAndTemplate:
    NOTE = "Prompts are text, so the tokenizer's chat template is not used"

    @pytest.mark.parametrize(
        ("rows", "settings", "told"),
        [
            ([{"prompt": "a"}], {}, True),
            ([{"prompt": "a"}, {"prompt": [{"role": "user", "content": "a"}]}], {}, True),
            ([{"prompt": [{"role": "user", "content": "a"}]}], {}, False),
            ([{"prompt": "a"}], {"prompt_type": "chat"}, False),
            ([{"prompt": "a"}], {"prompt_type": "raw"}, False),
            ([{"input_ids": [5, 6]}], {}, False),
        ],
    )
    def test_text_beside_a_chat_template_is_told(self, tmp_path, rows, settings, told):
        assert (self.NOTE in trainer_of(tmp_path, rows, **settings).recipe.introduction) is told

    def test_the_choice_between_columns_is_told(self, tmp_path):
        rows = [{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}]
        said = "Prompts come from the column 'prompt'; dataset_format = messages takes 'messages' instead"
        assert said in trainer_of(tmp_path, rows).recipe.introduction
        assert said not in trainer_of(tmp_path, rows, dataset_format="prompt").recipe.introduction


def test_a_column_that_no_data_set_has(tmp_path):
    with pytest.raises(DataError, match=r"columns asks for 'question', there is only \['number', 'prompt'\]"):
        trainer_of(tmp_path, numbered(2), columns={"prompt": "question"})
