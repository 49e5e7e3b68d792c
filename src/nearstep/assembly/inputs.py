"""What the user passes in Python beside the settings."""

from dataclasses import dataclass, replace
from typing import Any

from nearstep.common.given import (
    given_adapters,
    given_callbacks,
    given_model,
    given_reward_functions,
    given_reward_models,
    given_tokenizer,
    place_or,
    places_or,
)
from nearstep.models.load import load_tokenizer


@dataclass(frozen=True)
class RunInputs:
    """What the user passed, whatever it is; `checked` says what it may be. What is None comes from the settings."""

    tokenizer: Any = None
    model: Any = None
    ref_model: Any = None
    value_model: Any = None
    reward_model: Any = None
    reward_tokenizer: Any = None
    reward_funcs: Any = ()
    train_dataset: object = None
    eval_dataset: object = None
    peft_config: Any = None
    callbacks: Any = ()
    trust_region: object = None  # the axes: objects of their protocols, or classes to be made without arguments
    advantage: object = None
    kl_controller: object = None
    critic_schedule: object = None
    loss_aggregation: object = None
    engine: object = None

    def checked(self) -> "RunInputs":
        """The same with places written out, lists for one object, and classes made.

        Raises ConfigError for an argument that is none of what it may be, ModelError where no tokenizer is.
        """
        reader = given_tokenizer(self.reward_tokenizer, "reward_processing_class")
        return replace(
            self,
            tokenizer=given_tokenizer(self.tokenizer, "processing_class"),
            model=given_model(self.model, "model"),
            ref_model=given_model(self.ref_model, "ref_model"),
            value_model=given_model(self.value_model, "value_model"),
            reward_model=given_reward_models(self.reward_model),
            reward_tokenizer=load_tokenizer(reader, role="reward_processing_class")
            if isinstance(reader, str)
            else reader,
            reward_funcs=given_reward_functions(self.reward_funcs),
            train_dataset=places_or(self.train_dataset),
            eval_dataset=places_or(self.eval_dataset),
            peft_config=given_adapters(self.peft_config),
            callbacks=given_callbacks(self.callbacks),
            engine=place_or(self.engine),
        )
