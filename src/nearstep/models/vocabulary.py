"""Which token ids a tokenizer knows, and whether they mean the same to the model of another role."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from nearstep.common.errors import ModelError
from nearstep.common.trust import Trust
from nearstep.models.tokenizers import load_tokenizer

FILES = ("tokenizer_config.json", "tokenizer.json")


def known_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids from this on are no tokens: rows of an embedding beyond it were added to round its size up, never learned."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return max(vocabulary.values()) + 1


def tokenizer_beside(name: str, role: str, *, trust: Trust) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the folder or under the hub name of a model; None where there is none, or no way to it."""
    if Path(name).is_dir():
        found = any(Path(name, file).is_file() for file in FILES)
    else:
        found = None is not cached_file(
            name,
            FILES[0],
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return load_tokenizer(name, role=role, trust=trust) if found else None


def check_same_ids(own: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase, role: str) -> None:
    """Raises ModelError where an id is another token to the tokenizer of `role` than to the policy's.

    Only one of them may know an id, and added tokens may differ: a fine-tuned policy renames reserved ones.
    """
    mine, policys = ({number: token for token, number in each.get_vocab().items()} for each in (own, policy))
    shared = mine.keys() & policys.keys() - own.added_tokens_decoder.keys() - policy.added_tokens_decoder.keys()
    other = sorted(number for number in shared if mine[number] != policys[number])
    if other:
        number = other[0]
        raise ModelError(
            f"{role}: it reads the policy's token ids, and its tokenizer gives them another meaning: id {number} is "
            f"{mine[number]!r} there and {policys[number]!r} to the policy, and so {len(other):,} of {len(shared):,}. "
            f"Take a {role} of the policy's own family."
        )


def check_same_ends(own: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase, role: str) -> None:
    """Raises ModelError where texts begin or end with another token for `role` than for the policy: its distribution
    would teach the policy other ends than those that the run stops at."""
    for name, mine, policys in (
        ("EOS", own.eos_token_id, policy.eos_token_id),
        ("BOS", own.bos_token_id, policy.bos_token_id),
    ):
        if mine != policys:
            raise ModelError(
                f"{role}: its {name} is {_shown(own, mine)}, and that of the policy is {_shown(policy, policys)}. "
                f"Take a {role} whose tokenizer has the same special tokens, or save the policy's beside it where the "
                "two mean the same."
            )


def _shown(tokenizer: PreTrainedTokenizerBase, number: int | None) -> str:
    """A token for a message."""
    return "none" if number is None else f"{tokenizer.convert_ids_to_tokens(number)!r} (id {number})"
