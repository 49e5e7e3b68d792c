"""How a model folder becomes a model that writes and reads texts: what can be checked first, then its weights."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from nearstep.common.errors import ModelError
from nearstep.common.model_places import model_place
from nearstep.common.telling import tell
from nearstep.config.generating import ModelRunSettings
from nearstep.data.templates import with_template
from nearstep.models.adapter_folders import holds_adapters
from nearstep.models.dtypes import DTYPES
from nearstep.models.limits import Limits
from nearstep.models.load import check_folder, family_of, load_policy
from nearstep.models.roles import Policy, make_policy
from nearstep.models.stop_tokens import ModelEnds
from nearstep.models.tokenizers import TOKENIZER_FILES, load_tokenizer
from nearstep.models.vocabulary import check_same_ids, known_ids, tokenizer_beside
from nearstep.scale.torch_backend import torch_backend


@dataclass(frozen=True)
class TextModel:
    """A causal model by its place. Its weights are loaded when `policy` is first asked for."""

    place: str  # folder or hub name of the model itself
    base: str | None
    role: str
    family: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    limits: Limits  # its positions, and the ids that are tokens
    settings: ModelRunSettings

    @staticmethod
    def of(
        name: str,
        settings: ModelRunSettings,
        *,
        base: str | None = None,
        prompt_type: str = "none",
        role: str = "model",
    ) -> "TextModel":
        """The model that `name` means: a folder, a hub name, a run or its checkpoint; `base` lies under its adapters.

        Raises ConfigError or ModelError where there is none, or no tokenizer.
        """
        place, trusted = model_place(name), settings.trust_remote_code
        check_folder(place, role)
        base = None if base is None or not holds_adapters(place) else model_place(base)
        own = base is None or any(Path(place, file).is_file() for file in TOKENIZER_FILES)
        tokenizer = load_tokenizer(place if own else str(base), role=role, trust_remote_code=trusted)
        family = family_of(place, role=role, base=base, trust_remote_code=trusted)
        limits = Limits.of(family, role)
        limits = Limits(limits.positions, min(limits.rows, known_ids(tokenizer)), role)
        return TextModel(place, base, role, family, with_template(tokenizer, prompt_type), limits, settings)

    def beside(self, name: str, role: str) -> "TextModel":
        """Another model that reads this one's ids. Raises ModelError where they are other tokens to it."""
        place, trusted = model_place(name), self.settings.trust_remote_code
        family = family_of(place, role=role, trust_remote_code=trusted)
        limits = Limits.of(family, role)
        own = tokenizer_beside(place, role, trust_remote_code=trusted)
        if own is not None:
            check_same_ids(own, self.tokenizer, role)
        if limits.rows < self.limits.rows:
            raise ModelError(
                f"{role}: it has embeddings for {limits.rows:,} token ids, and the model writes {self.limits.rows:,}. "
                f"Take a {role} of the model's own family."
            )
        limits = Limits(limits.positions, self.limits.rows, role)
        return TextModel(place, None, role, family, self.tokenizer, limits, self.settings)

    @cached_property
    def policy(self) -> Policy:
        """The model with its weights, adapters merged."""
        settings = self.settings
        tell(f"loading {self.place} …")
        model = load_policy(
            self.place,
            role=self.role,
            dtype=DTYPES[settings.dtype],
            trust_remote_code=settings.trust_remote_code,
            base=self.base,
        )
        placed = torch_backend(use_cpu=settings.use_cpu).place(model.requires_grad_(False))
        return make_policy(placed, role=self.role, autocast=settings.bf16, vocabulary=self.limits.rows)

    @property
    def ends(self) -> ModelEnds:
        """The ids that the model itself names as ends."""
        return ModelEnds.of(self.base or self.place, self.family)
