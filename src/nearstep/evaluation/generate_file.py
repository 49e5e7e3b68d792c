"""`nearstep generate`: the completions that a model writes, in a file."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from nearstep.common.errors import ConfigError
from nearstep.common.telling import quiet_libraries, tell
from nearstep.config.generating import GenerateOptions
from nearstep.data.prompts import PromptSet
from nearstep.evaluation.completion_file import CompletionFile, completion_records
from nearstep.evaluation.prompt_file import PromptLimit, read_prompts, read_rows
from nearstep.evaluation.text_model import TextModel
from nearstep.evaluation.writing import CompletionWriter
from nearstep.reports.records import Record

SECONDS_BETWEEN = 10.0  # two words about the progress


@dataclass
class WrittenFile:
    """What was written, in numbers."""

    output: str
    prompts: int
    how: str
    completions: int = 0
    finished: int = 0
    tokens: int = 0
    before: int = 0  # that an earlier run had written

    def add(self, records: list[Record]) -> None:
        """Count some lines."""
        self.completions += len(records)
        self.finished += sum(bool(record["finished"]) for record in records)
        self.tokens += sum(int(str(record["response_length"])) for record in records)

    def __str__(self) -> str:
        share = f"{self.finished} of {self.completions} ended by themselves, " if self.completions else ""
        mean = f"{self.tokens / self.completions:.1f} tokens on average; " if self.completions else ""
        before = f" after the {self.before} that were there" if self.before else ""
        return (
            f"{self.completions} completions of {self.prompts} prompts{before}: {share}{mean}{self.how}.\n"
            f"Completions: {self.output}"
        )


def generate_file(options: GenerateOptions) -> WrittenFile:
    """Write every completion, a line for each; the file has its name once all are there.

    Raises ConfigError, DataError or ModelError before the first, TrainingError where nothing can be written.
    """
    if options.model_name_or_path is None:
        raise ConfigError("model_name_or_path is missing: the model that writes")
    with quiet_libraries():
        model = TextModel.of(
            options.model_name_or_path, options, base=options.base_model, prompt_type=options.prompt_type
        )
        writer = CompletionWriter.of(model, options, options.chat_template_kwargs)
        limit = PromptLimit.beside(options.response_length, model, options.max_prompt_length, options.on_long_prompt)
        prompts = read_prompts(read_rows(options, options.seed), model, options, limit)
        for sentence in [*prompts.report.sentences(), *writer.stops.notes]:
            tell(sentence)
        if Path(options.output).suffix.lower() == ".csv" and prompts.report.counts.chats:
            raise ConfigError(
                f"output = {options.output}: prompts are chats, which .csv cannot hold; give a .jsonl file"
            )
        model.policy  # noqa: B018 (weights that cannot be loaded are told before a file is begun)
        return _write(options, writer, CompletionFile(options), prompts)


def _write(options: GenerateOptions, writer: CompletionWriter, file: CompletionFile, prompts: PromptSet) -> WrittenFile:
    total, told = len(prompts) * options.num_generations, monotonic()
    with closing(file):
        before = file.written(prompts, options.num_generations)
        summary = WrittenFile(options.output, len(prompts), writer.how, before=before)
        for written in writer.write(prompts, after=before):
            records = completion_records(written, prompts)
            file.write(records)
            summary.add(records)
            if monotonic() - told > SECONDS_BETWEEN:
                told = monotonic()
                tell(f"{before + summary.completions} of {total} completions …")
        file.finish()
    return summary
