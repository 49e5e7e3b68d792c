"""The supervised start: a base model learns the summaries that people wrote, with transformers' own Trainer.

    python recipes/tldr/sft.py --config recipes/tldr/1b/sft.yaml --output_dir models/tldr-1b/sft

Settings are those below and all of transformers' TrainingArguments; a flag beats the file. Only the tokens of a
completion and the EOS behind it count in the loss. torchrun and accelerate launch start it on several processes.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

IGNORED = -100  # the label of a token that transformers leaves out of the loss


@dataclass
class Names:
    """What is trained on what."""

    model_name_or_path: str = field(metadata={"help": "the base model: a folder or a hub name"})
    dataset_name: str = field(metadata={"help": "jsonl file, folder or hub name; columns prompt and completion"})
    dataset_train_split: str = "train"
    max_length: int = field(default=565, metadata={"help": "longest prompt and completion; longer rows are left out"})


def arguments(words: Sequence[str]) -> tuple[Names, TrainingArguments]:
    """The file's settings, then the flags."""
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument("--config", type=Path)
    given, flags = files.parse_known_args(words)
    settings = {} if given.config is None else yaml.safe_load(given.config.read_text(encoding="utf-8"))
    from_file = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    names, training = HfArgumentParser([Names, TrainingArguments]).parse_args_into_dataclasses([*from_file, *flags])
    return names, training


def read(names: Names) -> Dataset:
    """The rows."""
    if names.dataset_name.endswith((".jsonl", ".json")):
        return load_dataset("json", data_files=names.dataset_name, split="train")
    return load_dataset(names.dataset_name, split=names.dataset_train_split)


def tokens_of(rows: Mapping[str, list[str]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    """Prompt and completion are tokenised apart, as a policy sees them: it continues the prompt's tokens."""
    prompts = tokenizer(rows["prompt"])["input_ids"]
    written = tokenizer(rows["completion"], add_special_tokens=False)["input_ids"]
    completions = [[*ids, tokenizer.eos_token_id] for ids in written]
    both = list(zip(prompts, completions, strict=True))
    return {
        "input_ids": [prompt + completion for prompt, completion in both],
        "labels": [[IGNORED] * len(prompt) + completion for prompt, completion in both],
    }


def main(words: Sequence[str]) -> None:
    """Train and save, with the tokenizer."""
    names, training = arguments(words)
    tokenizer = AutoTokenizer.from_pretrained(names.model_name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # EOS stays a token to be learned (2403.17031)
    model = AutoModelForCausalLM.from_pretrained(names.model_name_or_path)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    rows = read(names)
    found = rows.map(lambda some: tokens_of(some, tokenizer), batched=True, remove_columns=rows.column_names)
    fitting = found.filter(lambda row: len(row["input_ids"]) <= names.max_length)
    if len(fitting) == 0:
        raise SystemExit(f"no row of {names.dataset_name} fits into max_length = {names.max_length} tokens")
    print(f"{len(fitting):,} rows, {len(found) - len(fitting):,} longer than {names.max_length} tokens left out")
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    trainer = Trainer(model, training, data_collator=collator, train_dataset=fitting, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(sys.argv[1:])
