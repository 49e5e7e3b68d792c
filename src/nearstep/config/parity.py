"""Which settings say what `nearstep parity` compares: a model, prompts, engines, types of weights, batch sizes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from nearstep.config.axes import ENGINES, listed, name_problems
from nearstep.config.conversion import ModelName
from nearstep.config.data import data_name_problems
from nearstep.config.engines import address_problems
from nearstep.config.generating import DataFileSettings, ModelRunSettings, PromptLimitSettings
from nearstep.config.old_names import OF_GENERATION, OldNames
from nearstep.config.settings import Problem, Settings, accepts_old_names, option, sections, without_effect
from nearstep.config.trusting import pickled_weights, trusted_code

ParityType = Literal["float32", "bfloat16", "float64", "bf16"]


@dataclass(frozen=True, kw_only=True)
class ComparedSettings(Settings):
    """What is compared."""

    model_name_or_path: str | None = option(
        None, "the policy: a folder, a hub name, adapters, a run, or a checkpoint as RUN@UPDATE", is_place=True
    )
    base_model: str | None = option(
        None, "the model under a folder of adapters, where it is another than the one that they name", is_place=True
    )
    engines: tuple[str, ...] = option(("transformers",), f"engines, each by its name: {listed(ENGINES)}", is_place=True)
    dtypes: tuple[str, ...] = option(
        ("float32",), f"types of the weights: {', '.join(get_args(ParityType))}; bf16 is autocast over float32"
    )
    batch_sizes: tuple[int, ...] = option((64,), "most rows that an engine works on at a time", at_least=1)
    json: bool = option(False, "print one JSON object instead of the table")


@dataclass(frozen=True, kw_only=True)
class ComparedPrompts(DataFileSettings):
    """Of which prompts."""

    dataset_name: str | None = option(
        None, "the prompts: a file, a folder, or a hub name; random ids if not given", is_place=True
    )
    max_samples: int = option(16, "this many prompts, drawn by the seed, or made up", at_least=1)


@dataclass(frozen=True, kw_only=True)
class ComparedSampling(Settings):
    """How responses are sampled: as in the run that is to come."""

    response_length: int = option(64, "tokens of every response", at_least=1)
    temperature: float = option(1.0, "softens (above 1) or sharpens the distribution", above=0)
    top_p: float = option(1.0, "sample from the smallest set of tokens with this probability", above=0, at_most=1)
    top_k: int = option(0, "sample from this many most probable tokens; 0 for all", at_least=0)
    seed: int = option(42, "every random number derives from it", at_least=0)
    max_tokens_per_microbatch: int = option(16384, "most tokens in one forward pass; limits memory", at_least=1)


@dataclass(frozen=True, kw_only=True)
class ComparedRun(Settings):
    """How models and engines are run."""

    engine_cache_gib: float = option(1.0, "vllm: memory for keys and values, in GiB", above=0)
    engine_url: str | None = option(None, "vllm_server: its address, such as http://127.0.0.1:8000 of serve-engine")
    use_cpu: bool = option(False, "stay on the CPU even where there is a GPU")
    trust_remote_code: tuple[ModelName, ...] | None = trusted_code()
    allow_pickled_weights: bool = pickled_weights()


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class ParityOptions(ComparedRun, ComparedSampling, PromptLimitSettings, ComparedPrompts, ComparedSettings):
    """Settings of `nearstep parity`."""

    old_names: ClassVar[OldNames] = OF_GENERATION

    def run_of(self, kind: str) -> ModelRunSettings:
        """How the model is run in one of the types."""
        return ModelRunSettings(
            dtype="float32" if kind == "bf16" else kind,  # type: ignore[arg-type]
            bf16=kind == "bf16",
            use_cpu=self.use_cpu,
            trust_remote_code=self.trust_remote_code,
            allow_pickled_weights=self.allow_pickled_weights,
        )

    def problems(self) -> Iterator[Problem]:
        """Names that there are not, and settings that clash."""
        yield from data_name_problems(self.dataset_format, self.prompt_type)
        for name in self.engines:
            yield from name_problems("engines", name, ENGINES)
        for kind in self.dtypes:
            if kind not in get_args(ParityType):
                known = ", ".join(get_args(ParityType))
                yield Problem(f"dtypes = {kind!r} is none of {known}", ("dtypes",))
        for name, given in (("engines", self.engines), ("dtypes", self.dtypes), ("batch_sizes", self.batch_sizes)):
            if not given:
                yield Problem(f"{name} is empty: there is nothing to compare", (name,))
        if "vllm_server" in self.engines and self.engine_url is None:
            yield Problem(
                "engines = vllm_server needs the address of a server: give engine_url", ("engines", "engine_url")
            )
        if self.engine_url is not None:
            yield from address_problems((self.engine_url,))

    def remarks(self) -> Iterator[str]:
        """Settings without effect."""
        of_files = ("dataset_config", "split", "dataset_format", "columns", "prompt_type", "chat_template_kwargs")
        return without_effect(
            self,
            ("without dataset_name", self.dataset_name is None, (*of_files, "on_bad_row")),
            ("without engines = vllm", "vllm" not in self.engines, ("engine_cache_gib",)),
            ("without engines = vllm_server", "vllm_server" not in self.engines, ("engine_url",)),
        )


PARITY_SECTIONS = sections(
    ("Compared", ComparedSettings),
    ("Prompts", ComparedPrompts),
    ("Length of prompts", PromptLimitSettings),
    ("Sampling", ComparedSampling),
    ("Engines and models", ComparedRun),
)
