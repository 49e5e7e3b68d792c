"""What our part in vLLM's own worker does: a head that shares its weight with the embeddings is packed again."""

from typing import Any

PLACE = "nearstep.rollout.vllm.worker.HeadPacking"  # by which vLLM imports it (worker_extension_cls)
PACK = "pack_heads"


class HeadPacking:
    """Mixed into vLLM's worker, whose `model_runner` it finds.

    On a CPU vLLM computes a linear layer from a packed copy of its weight, made when the layer is loaded. A head that
    is tied to the embeddings is loaded with them and not by itself, so that a reload of weights (vLLM 0.32) leaves it
    with the packed copy of those that came first.
    """

    model_runner: Any

    def pack_heads(self) -> None:
        """Pack the weight of every head as it is now."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)
