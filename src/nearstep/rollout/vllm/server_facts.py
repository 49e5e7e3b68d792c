"""What a vLLM server says of itself, and whether rollouts can be made with it: asked before anything is generated."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from nearstep.common.errors import ConfigError
from nearstep.rollout.vllm.client import ServerClient
from nearstep.rollout.vllm.requests import RowRequest
from nearstep.rollout.vllm.worker import PLACE

START = "start it by nearstep serve-engine, or with"
NEEDED = {
    "logprobs_mode": ("processed_logprobs", "--logprobs-mode processed_logprobs", "records log-probs of another "
                      "distribution than the one it samples from"),
    "generation_config": ("vllm", "--generation-config vllm", "takes stop tokens and penalties from the model folder"),
}  # fmt: skip


@dataclass(frozen=True)
class ServerFacts:
    """The model by the name it is asked for, and the limits of its rows."""

    model: str
    longest_row: int  # prompt and response
    most_top_tokens: int  # -1 for all
    dtype: str  # that it computes in, as torch calls it
    on_cpu: bool
    packs_heads: bool  # has our part in its workers

    @staticmethod
    def of(client: ServerClient) -> "ServerFacts":
        """Ask the server. Raises ConfigError where it was started otherwise than rollouts need."""
        info = client.get("/server_info?config_format=json")
        served = client.get("/v1/models")
        try:
            whole = info["vllm_config"]
            settings = whole["model_config"]
            found = {name: str(settings[name]) for name in NEEDED}
            facts = ServerFacts(
                served["data"][0]["id"],
                served["data"][0]["max_model_len"],
                int(settings["max_logprobs"]),
                str(settings["dtype"]).removeprefix("torch."),
                str(whole["device_config"]["device"]).startswith("cpu"),
                whole["parallel_config"]["worker_extension_cls"] == PLACE,
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{client.shown} does not say what it serves ({type(error).__name__}: {error}). This is written for "
                "vLLM 0.32; start that by nearstep serve-engine"
            ) from None
        for name, (wanted, flag, what) in NEEDED.items():
            if found[name] != wanted:
                raise ConfigError(f"{client.shown} {what} ({name} = {found[name]}): {START} {flag}")
        return facts

    def remark(self, shown: str, policy: torch.dtype) -> str | None:
        """A sentence where the server rounds otherwise than the policy, which shows in policy/mismatch_kl."""
        own = str(policy).removeprefix("torch.")
        if self.dtype == own:
            return None
        return (
            f"{shown} computes in {self.dtype} and the policy in {own}: log-probs differ by rounding. "
            f"For fewer differences {START} --dtype {own}"
        )

    def must_pack(self, shown: str, *, tied: bool) -> bool:
        """Whether the head has to be packed after each reload. Raises ConfigError where it has to and cannot be."""
        if not (self.on_cpu and tied):
            return False
        if not self.packs_heads:
            raise ConfigError(
                f"{shown} runs on a CPU, where vLLM keeps an older copy of a head that is tied to the embeddings: "
                f"{START} --worker-extension-cls {PLACE}, where nearstep is installed"
            )
        return True

    def require(self, shown: str, requests: Iterable[RowRequest]) -> None:
        """Raise ConfigError for rows that the server would cut or refuse."""
        for request in requests:
            length = len(request.prompt) + request.max_tokens
            if length > self.longest_row:
                raise ConfigError(
                    f"{shown} takes rows of {self.longest_row} tokens, and a prompt of {len(request.prompt)} with "
                    f"{request.max_tokens} tokens of response has {length}: shorten them, or start it with more "
                    "memory for keys and values (--engine_cache_gib of serve-engine)"
                )
            if 0 <= self.most_top_tokens < request.top_tokens:
                raise ConfigError(
                    f"{shown} records {self.most_top_tokens} top tokens, and {request.top_tokens} are compared: "
                    f"{START} --max-logprobs -1"
                )
