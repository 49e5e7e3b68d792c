"""The two settings by which models may bring more than weights, for every command that loads models.

Standard library only.
"""

from typing import Any

from nearstep.config.options import option


def trusted_code() -> Any:
    """The setting `trust_remote_code`."""
    return option(
        None,
        "models whose own Python code is run: folders, hub names as org/name@COMMIT, or true for all folders that the "
        "settings name; false passes code over and takes transformers' classes; not given: such models are refused",
        is_place=True,
    )


def pickled_weights() -> Any:
    """The setting `allow_pickled_weights`."""
    return option(False, "read weights in .bin files too, as tensors alone; not given: they are refused, as pickles")
