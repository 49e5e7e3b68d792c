"""What a model can read, told by its configuration alone: how many tokens a row may have, and which ids it knows."""

from dataclasses import dataclass

from transformers import PreTrainedConfig

# Their first token has the position after that of the padding id (RoBERTa's habit): a table of 514 reads 512 tokens.
COUNTING_FROM_PADDING = frozenset({
    "altclip_text_model", "bridgetower_text_model", "camembert", "clap_text_model", "data2vec-text", "esm", "ibert",
    "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
})  # fmt: skip
PADDING_ID = {"mpnet": 1}  # where the model has its own, whatever its configuration says
POSITIONS_NAME = {"mpt": "max_seq_len"}  # where transformers knows no common name for it


@dataclass(frozen=True)
class Limits:
    """Tokens that a row of `role` may have, None for no limit, and rows of its embedding: ids below it can be read."""

    positions: int | None
    rows: int
    role: str = "the policy"

    @staticmethod
    def of(config: PreTrainedConfig, role: str = "the policy") -> "Limits":
        """Those of a model with this configuration.

        OPT and its like, whose table is longer than what they read, say what they read.
        """
        text = config.get_text_config()
        known = text.to_dict()
        common = "max_position_embeddings"
        name = POSITIONS_NAME.get(text.model_type, text.attribute_map.get(common, common))
        positions: int | None = known.get(name)
        if positions is not None and text.model_type in COUNTING_FROM_PADDING:
            padding = PADDING_ID.get(text.model_type, text.pad_token_id)
            positions -= 0 if padding is None else padding + 1
        return Limits(positions, text.vocab_size, role)
