"""What is read off logits on a CPU, by loops that numba compiles for it."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.models.cpu_threads import arrays, even_shares, in_threads, loops_there
from nearstep.models.distribution import Sampling
from nearstep.models.forward.head import Head
from nearstep.models.forward.logits import Answers, OfAnswers


@dataclass(frozen=True)
class InLoops:
    """A Reader in one pass over each action's logits, where nothing but a factor stands between them and z."""

    asked: Int[Tensor, "actions ids"]
    factor: float

    @staticmethod
    def fits(head: Head, sampling: Sampling, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether the loops can read the logits of a head."""
        plain = head.softcap is None and not sampling.cuts
        return plain and dtype == torch.float32 and device.type == "cpu" and loops_there()

    def read(self, linear: Float[Tensor, "lines vocabulary"], places: slice) -> Answers:
        """See Reader.read."""
        from nearstep.models.logits_kernels import read

        asked = self.asked[places].contiguous()
        logprobs, entropy = linear.new_empty(asked.shape), linear.new_empty(len(linear))
        logits, ids, of_ids, entropies = arrays(linear, asked, logprobs, entropy)

        def run(first: int, last: int) -> None:
            lines = slice(first, last)
            read(logits[lines], ids[lines], np.float32(self.factor), of_ids[lines], entropies[lines])

        in_threads(run, even_shares(*linear.shape))
        return Answers(logprobs, entropy)

    def differentiate(
        self, linear: Float[Tensor, "lines vocabulary"], places: slice, answers: Answers, gradients: OfAnswers
    ) -> None:
        """See Reader.differentiate."""
        from nearstep.models.logits_kernels import differentiate

        of_entropy = linear.new_empty(0) if gradients.entropy is None else gradients.entropy
        tensors = (self.asked[places], answers.logprobs[:, 0], answers.entropy, gradients.logprobs, of_entropy)
        found = (tensor.contiguous() for tensor in tensors)
        logits, asked, sampled, entropy, of_asked, of_entropies = arrays(linear, *found)

        def run(first: int, last: int) -> None:
            lines = slice(first, last)
            differentiate(
                logits[lines], asked[lines], np.float32(self.factor), sampled[lines], entropy[lines],
                of_asked[lines], of_entropies[lines],
            )  # fmt: skip

        in_threads(run, even_shares(*linear.shape))
