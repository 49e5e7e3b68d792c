"""Which settings say from which prompts, and how, a model writes completions outside training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from nearstep.common.trust import Trust, trust_of
from nearstep.config.conversion import ModelName
from nearstep.config.data import FORMATS, data_name_problems, prompt_form, template_keywords
from nearstep.config.old_names import OF_GENERATION, OldNames
from nearstep.config.settings import Problem, Settings, accepts_old_names, option, sections, without_effect
from nearstep.config.trusting import pickled_weights, trusted_code

OUTPUTS = (".jsonl", ".csv")


@dataclass(frozen=True, kw_only=True)
class DataFileSettings(Settings):
    """Which rows are read, and how they are understood."""

    dataset_name: str | None = option(
        None, "the prompts: a jsonl, json, csv or parquet file, a folder, or a hub name", is_place=True
    )
    dataset_config: str | None = option(None, "configuration of a folder or hub data set")
    split: str | None = option(None, "split to read; train of a file and test of anything else if not given")
    max_samples: int | None = option(None, "read no more than this many rows, drawn by the seed", at_least=1)
    dataset_format: str | None = option(
        None, f"how rows are understood: {', '.join(FORMATS)}; recognised by columns if not given"
    )
    columns: tuple[tuple[str, str], ...] = option(
        (), "columns under other names, ours=theirs: prompt=question answer=solution …"
    )
    prompt_type: str = prompt_form()
    chat_template_kwargs: Mapping[str, Any] | None = template_keywords()
    on_bad_row: Literal["raise", "drop"] = option(
        "raise", "what happens to rows that cannot be used: stop and name them, or leave them out and count them"
    )


@dataclass(frozen=True, kw_only=True)
class DecodingSettings(Settings):
    """How completions are written."""

    num_generations: int = option(1, "completions of each prompt", at_least=1)
    response_length: int = option(256, "longest completion in tokens", at_least=1)
    do_sample: bool | None = option(
        None,
        "sample, or else take the most probable token each time; if not given, sample where temperature, top_p or "
        "top_k is set or there are several completions of a prompt",
    )
    temperature: float | None = option(
        None, "softens (above 1) or sharpens the distribution; 0 takes the most probable token; 1 if not given",
        at_least=0,
    )  # fmt: skip
    top_p: float = option(1.0, "sample from the smallest set of tokens with this probability", above=0, at_most=1)
    top_k: int = option(0, "sample from this many most probable tokens; 0 for all", at_least=0)
    stop_token: str | None = option(
        "auto",
        "what ends a completion. auto: every end that tokenizer, generation config and chat template mean; eos: the "
        "tokenizer's EOS alone; or the text of one token; 'none' for no stop",
    )
    stop_token_id: tuple[int, ...] | None = option(
        None, "ids of the tokens that end a completion, instead of stop_token", at_least=0
    )
    seed: int = option(42, "every random number derives from it", at_least=0)
    batch_size: int = option(64, "most rows that are worked on at a time", at_least=1)
    max_tokens_per_microbatch: int = option(
        16384, "most tokens in one forward pass, and of rows that are written at a time; limits memory", at_least=1
    )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn rather than the most probable taken."""
        if self.do_sample is not None:
            return self.do_sample
        wants = self.temperature is not None or self.top_p < 1 or self.top_k > 0 or self.num_generations > 1
        return wants and self.temperature != 0


@dataclass(frozen=True, kw_only=True)
class ModelRunSettings(Settings):
    """How models are run."""

    dtype: Literal["float32", "bfloat16", "float64"] = option(
        "float32", "type of the weights of models that are loaded"
    )
    bf16: bool = option(False, "compute in bfloat16 (autocast), weights stay as they are")
    use_cpu: bool = option(False, "stay on the CPU even where there is a GPU; on a GPU nothing has been run yet")
    trust_remote_code: tuple[ModelName, ...] | None = trusted_code()
    allow_pickled_weights: bool = pickled_weights()

    @property
    def trust(self) -> Trust:
        """What models may bring along."""
        return trust_of(self)


@dataclass(frozen=True, kw_only=True)
class WriterSettings(Settings):
    """Which model writes, and where its completions go."""

    model_name_or_path: str | None = option(
        None,
        "the model: a folder, a hub name, adapters, a run, or a checkpoint as RUN@UPDATE or RUN/checkpoint-UPDATE",
        is_place=True,
    )
    base_model: str | None = option(
        None, "the model under a folder of adapters, where it is another than the one that they name", is_place=True
    )
    output: str = option(
        "completions.jsonl", "file for the completions, .jsonl or .csv; written anew when all are there", is_place=True
    )
    resume: bool = option(False, "go on where a run with the same settings was interrupted")


@dataclass(frozen=True, kw_only=True)
class PromptLimitSettings(Settings):
    """How long prompts may be."""

    max_prompt_length: int | None = option(
        None, "longest prompt in tokens; what the model's positions leave beside a completion if not given", at_least=1
    )
    on_long_prompt: Literal["error", "drop", "cut_left"] = option(
        "error", "what happens to a longer prompt: stop and name it, leave it out, or keep its last tokens"
    )


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class GenerateOptions(ModelRunSettings, DecodingSettings, PromptLimitSettings, DataFileSettings, WriterSettings):
    """Settings of `nearstep generate`."""

    old_names: ClassVar[OldNames] = OF_GENERATION

    def problems(self) -> Iterator[Problem]:
        """Settings that clash."""
        yield from data_name_problems(self.dataset_format, self.prompt_type)
        yield from sampling_problems(self)
        if Path(self.output).suffix.lower() not in OUTPUTS:
            yield Problem(f"output = {self.output} must end in {' or '.join(OUTPUTS)}", ("output",))

    def remarks(self) -> Iterator[str]:
        """Settings without effect."""
        return sampling_remarks(self)


GENERATE_SECTIONS = sections(
    ("Model and file", WriterSettings),
    ("Prompts", DataFileSettings),
    ("Length of prompts", PromptLimitSettings),
    ("Sampling", DecodingSettings),
    ("Models", ModelRunSettings),
)


def sampling_problems(settings: DecodingSettings) -> Iterator[Problem]:
    """Settings of sampling that contradict each other."""
    if settings.num_generations > 1 and not settings.samples:
        text = f"num_generations = {settings.num_generations} greedy completions of a prompt are all the same: sample"
        yield Problem(text, ("num_generations", "do_sample", "temperature"))
    if settings.do_sample and settings.temperature == 0:
        yield Problem("do_sample with temperature = 0 draws nothing: give one of them", ("do_sample", "temperature"))


def sampling_remarks(settings: DecodingSettings) -> Iterator[str]:
    """Settings of sampling without effect."""
    return without_effect(
        settings,
        ("where the most probable token is taken", not settings.samples, ("top_p", "top_k")),
        ("with stop_token_id", settings.stop_token_id is not None, ("stop_token",)),
    )
