"""vLLM as a server: weights go by a folder, prompts and tokens by HTTP; a lost server is asked again, within bounds."""

import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from nearstep.common.errors import ConfigError, LostEngineError, TrainingError
from nearstep.common.plugins import need_package
from nearstep.common.waiting import say
from nearstep.models.roles import Policy, inner_model
from nearstep.rollout.engine import Capabilities, GenerationSettings, RolloutEngine, RowEnded
from nearstep.rollout.engine_settings import EngineSettings
from nearstep.rollout.vllm.client import RPC, ServerClient
from nearstep.rollout.vllm.requests import RowRequest, SampledRow, rollout_of_answers, row_requests
from nearstep.rollout.vllm.server_facts import ServerFacts
from nearstep.rollout.vllm.weights import folder_weights, whole_model, write_configuration
from nearstep.rollout.vllm.worker import PACK
from nearstep.types import Prompts, Rollout

RELOAD_SECONDS = 600.0  # most for reading weights from the folder: of a large model they are many
PAUSE_SECONDS = 0.5  # between two looks whether a lost server is back


def make_vllm_server(settings: EngineSettings) -> RolloutEngine:
    """The engine. Raises ConfigError where it has no server, or no way to ask one."""
    need_package("httpx2", "remote", "engine = vllm_server", ConfigError)
    if not settings.server.url:
        raise ConfigError("engine = vllm_server needs the address of a server: give engine_url")
    return VLLMServerEngine(settings)


@dataclass
class VLLMServerEngine:
    """Samples by a vLLM server, which reads new weights from a folder that both see."""

    settings: EngineSettings
    version: int = 0
    rows: int = 0  # logits of the model
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of the rollouts
    dtype: torch.dtype = torch.float32  # that the policy computes in
    tied: bool = False  # the policy's head to its embeddings
    facts: ServerFacts | None = None  # of the server, once it was asked
    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:8])  # tells this run's weights from another's

    @property
    def client(self) -> ServerClient:
        """How the server is asked."""
        return ServerClient(self.settings.server.url, self.settings.server.timeout_seconds)

    @property
    def folder(self) -> Path:
        """Where the server reads the weights of this version."""
        return Path(self.settings.server.weights_dir) / f"version-{self.version}"

    def capabilities(self) -> Capabilities:
        """All there are."""
        return Capabilities(top_tokens=True, limits=True, row_ended=True, own_episode=True)

    def load(self, policy: Policy, version: int) -> None:
        """Write the weights for the server, and have it read them; what was computed from older ones is forgotten."""
        model = whole_model(policy, "vllm_server")
        self._take_note(policy, version, model)
        try:
            _write(model, self.folder)
        except OSError as error:
            raise TrainingError(f"engine_weights_dir: {self.folder} cannot be written: {error}") from error
        for older in self.folder.parent.iterdir():  # also those of a run that was killed
            if older != self.folder:
                shutil.rmtree(older, ignore_errors=True)
        self._persistently(self._publish, reload=False)

    def follow(self, policy: Policy, version: int) -> None:
        """Another process has given the server, which is shared, these weights."""
        inner = inner_model(policy.model)
        assert isinstance(inner, PreTrainedModel), "checked when the engine was chosen"
        self._take_note(policy, version, inner)
        self._persistently(self._ask_facts, reload=False)

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """One response per row; see RolloutEngine.generate."""
        assert self.facts is not None, "load() comes before generate()"
        requests = dict(enumerate(row_requests(prompts, settings, self.rows)))
        self.facts.require(self.client.shown, requests.values())
        answers: dict[int, SampledRow] = {}
        told: set[int] = set()

        def ended(row: int, answer: SampledRow) -> None:
            answers[row] = answer
            if row_ended is not None and row not in told:
                told.add(row)
                row_ended(row, list(answer.ids), bool(answer.ids) and answer.ids[-1] in settings.stop_ids)

        self._persistently(lambda: self._play(requests, answers, ended), reload=True)
        in_order = [answers[row] for row in range(len(prompts))]
        return rollout_of_answers(prompts, settings, in_order, self.version, self.device)

    def close(self) -> None:
        """Leave the server as it is, and take the weights away."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for place in (self.folder.parent, self.folder.parent.parent):
            with suppress(OSError):  # it holds something else, or was never made
                place.rmdir()
        self.facts = None

    def _take_note(self, policy: Policy, version: int, model: PreTrainedModel) -> None:
        self.version, self.device = version, policy.device
        self.rows = model.config.get_text_config().vocab_size
        self.tied = model.config.get_text_config().tie_word_embeddings
        self.dtype = torch.bfloat16 if policy.autocast else policy.dtype

    def _ask_facts(self) -> None:
        known, self.facts = self.facts, ServerFacts.of(self.client)
        remark = self.facts.remark(self.client.shown, self.dtype)
        if remark is not None and (known is None or known.dtype != self.facts.dtype):
            say(remark)

    def _play(
        self, requests: dict[int, RowRequest], answers: dict[int, SampledRow], ended: Callable[[int, SampledRow], None]
    ) -> None:
        """Ask for all rows that have not ended.

        A server that is started anew breaks off what it is asked, so that rows between two looks at its version, both
        right, are of that version, whichever process gave it the weights.
        """
        assert self.facts is not None
        self._require_version("before")
        missing = {row: request for row, request in requests.items() if row not in answers}
        for row, answer in self.client.play(missing, self.settings.max_rows, self.facts.model):
            ended(row, answer)
        try:
            self._require_version("after")
        except LostEngineError:
            answers.clear()
            raise

    def _require_version(self, when: str) -> None:
        loaded = self._loaded()
        if loaded != self._version:
            raise LostEngineError(
                f"{self.client.shown} has the weights {loaded!r} {when} the rollout and was given {self._version!r}: "
                "it was started anew, or another run uses it. Give each run a server of its own"
            )

    def _publish(self) -> None:
        """Have the server read the weights, forget what it computed from older ones, and say whose they are."""
        client = self.client
        self._ask_facts()
        assert self.facts is not None
        packs = self.facts.must_pack(client.shown, tied=self.tied)
        client.post(
            RPC,
            {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}},
            seconds=RELOAD_SECONDS,
        )
        if packs:
            client.post(RPC, {"method": PACK}, seconds=RELOAD_SECONDS)
        if not client.post("/reset_prefix_cache")["success"]:
            if self.settings.server.shared and self._loaded() == self._version:
                return  # another process of this run was faster, and its rows run
            raise TrainingError(
                f"{client.shown} could not forget the keys and values of older weights, since rows of somebody else "
                "run on it. Give each run a server of its own"
            )
        client.post("/update_weight_version", {"new_version": self._version})

    @property
    def _version(self) -> str:
        return f"{self.mark}-{self.version}"

    def _loaded(self) -> object:
        return self.client.get("/weight_info")["weight_version"]

    def _persistently(self, act: Callable[[], None], *, reload: bool) -> None:
        """Do it; where the server is lost, wait for it, give it the weights again and go on, `retries` times.

        One that has not come back within its time is not asked: each question would wait as long again.
        """
        retries, lost = self.settings.server.retries, ""
        for left in range(retries, -1, -1):
            is_first = left == retries
            if is_first or self._is_back():
                try:
                    if reload and not is_first and self._loaded() != self._version:
                        self._publish()
                    act()
                    return
                except LostEngineError as error:
                    lost = str(error)
            if left > 0:
                say(f"{lost}; {left} tries left")
        raise LostEngineError(
            f"{lost}. {retries} further tries did not help. Look at its log; start it again, and go on with --resume "
            "auto; or let the built-in engine go on by engine_fallback = transformers"
        )

    def _is_back(self) -> bool:
        """Whether it answers, within the time for which it may be silent."""
        ends = time.monotonic() + self.settings.server.timeout_seconds
        while (seconds := ends - time.monotonic()) > 0:
            time.sleep(min(PAUSE_SECONDS, seconds))
            try:
                ServerClient(self.settings.server.url, max(seconds, PAUSE_SECONDS)).get("/health")
                return True
            except LostEngineError:
                continue
        return False


def _write(model: PreTrainedModel, folder: Path) -> None:
    """Configuration and weights; the folder has its name once they are whole."""
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_configuration(model, unfinished)
    weights = {name: tensor.to("cpu").contiguous() for name, tensor in folder_weights(model).items()}
    save_file(weights, str(unfinished / "model.safetensors"), metadata={"format": "pt"})
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
