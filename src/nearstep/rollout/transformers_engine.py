"""The built-in engine: a decode loop on the training model; finished rows leave, waiting rows enter."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nearstep.algorithm.ragged import places_in_row, row_numbers
from nearstep.common.errors import ModelError, TrainingError
from nearstep.common.random_streams import stream
from nearstep.models.distribution import sampling_logprobs
from nearstep.models.forward.forward import states_at
from nearstep.models.forward.layout import PaddedRows
from nearstep.models.roles import Policy
from nearstep.rollout.checks import place_of
from nearstep.rollout.decode_graphs import Capture, GraphedDecoding, cuda_graph_capture
from nearstep.rollout.decoding import Decoding, PlainDecoding, logits_of
from nearstep.rollout.engine import Capabilities, EngineSettings, GenerationSettings, RowEnded
from nearstep.rollout.recomputing import RecomputedBatch
from nearstep.rollout.sampling import draw
from nearstep.rollout.slot_cache import Prefill, SlotCache
from nearstep.rollout.waves import Wave
from nearstep.types import Prompts, Rollout, TopLogprobs, row_groups


@dataclass
class TransformersEngine:
    """Samples from a transformers model with its own weights, so that nothing has to be copied for a new version."""

    settings: EngineSettings
    policy: Policy | None = None
    version: int = 0
    new_capture: Callable[[torch.device], Capture] = cuda_graph_capture  # asked once per `generate`

    def capabilities(self) -> Capabilities:
        """All there are."""
        return Capabilities(top_tokens=True, limits=True, row_ended=True, own_episode=True, goes_on=True)

    def load(self, policy: Policy, version: int) -> None:
        """Sample from `policy` from now on."""
        self.policy, self.version = policy, version

    def close(self) -> None:
        """Let go of the policy; nothing else outlives a rollout."""
        self.policy = None

    @torch.no_grad()
    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """One response per row; see RolloutEngine.generate. Raises TrainingError for a distribution of NaN."""
        assert self.policy is not None, "load() comes before generate()"
        limits = [settings.response_length] * len(prompts) if settings.limits is None else list(settings.limits)
        assert len(limits) == len(prompts), "one limit for each row"
        assert min(limits) > 0, "every row needs room for a token"
        responses = Responses.empty(limits, settings.top_tokens, self.policy.trunk)
        begun = [0] * len(prompts) if settings.begun is None else list(settings.begun)
        uniforms = _uniforms(settings.seed, prompts.episodes, limits, begun).to(responses.tokens.device)
        longest = max(len(ids) + limit for ids, limit in zip(prompts.ids, limits, strict=True))
        batch = self._batch(self.policy, min(self.settings.max_rows, len(prompts)), longest)
        waiting = deque(range(len(prompts)))
        while waiting or batch.rows:
            if waiting and batch.has_room:
                rows = [waiting.popleft() for _ in range(min(len(waiting), batch.free))]
                logits = batch.enter(rows, [prompts.ids[row] for row in rows])
            else:
                rows = batch.rows
                logits = batch.step(responses.last_tokens(rows))
            logprobs = sampling_logprobs(logits, settings.sampling)
            places = responses.places(rows)
            chosen = logprobs.argmax(-1) if settings.greedy else draw(logprobs.exp(), uniforms[places])
            responses.add(places, chosen, logprobs)
            ended = responses.count(rows, chosen.tolist(), settings.stop_ids)
            batch.leave(ended)
            if row_ended is not None:
                for row in sorted(ended):
                    row_ended(row, responses.ids(row), responses.finished[row])
        rollout = responses.rollout(prompts, self.version)
        _check_numbers(rollout, prompts)
        return rollout

    def _batch(self, policy: Policy, slots: int, longest: int) -> "LiveBatch | Wave | RecomputedBatch":
        """Where the rows of one rollout live. Keys and values are kept where a row can go on from them."""
        if policy.layout.token_by_token:
            cache = SlotCache(slots, longest)
            return LiveBatch(policy, self.settings.max_tokens, cache, self._decoding(policy, cache))
        if self.settings.decode_graphs:
            raise ModelError(
                f"decode_graphs: {type(policy.model).__name__} {policy.layout.note} It has no decoding step that "
                "could be captured: leave decode_graphs out."
            )
        if isinstance(policy.layout, PaddedRows) and policy.layout.own_cache:
            return Wave(policy, slots)
        return RecomputedBatch(policy, self.settings.max_tokens, slots)

    def _decoding(self, policy: Policy, cache: SlotCache) -> Decoding:
        """How the rows of one rollout decode. Graphs end with it, as the cache does: they hold no memory during the
        update, and no address of a weight that may have moved since."""
        if not self.settings.decode_graphs:
            return PlainDecoding(policy, cache)
        return GraphedDecoding.of(policy, cache, self.new_capture(policy.device))


def _check_numbers(rollout: Rollout, prompts: Prompts) -> None:
    """A distribution of NaN yields some token, and the run would go on; its log-prob shows it. These are the policy's
    own weights, so that it is the policy which is broken: other engines are told of what they recorded, by `play`."""
    broken = ~rollout.logprobs.isfinite()
    if broken.any():
        raise TrainingError(
            f"the policy's distribution is not a number at {place_of(rollout, prompts, int(broken.int().argmax()))}. "
            "Its weights or activations are NaN or infinite: look at policy/grad_norm of the last updates, lower "
            "learning_rate, or compute in float32"
        )


def _uniforms(seed: int, episodes: list[int], limits: list[int], begun: list[int]) -> Tensor:
    """The random numbers of every row, from its episode's own stream: [rows, longest limit]. A row that goes on takes
    those behind the ones that its `begun` tokens took."""
    width = max(limits)
    draws = [
        torch.rand(first + width, dtype=torch.float64, generator=stream(seed, "sampling", episode))[first:]
        for episode, first in zip(episodes, begun, strict=True)
    ]
    return torch.stack(draws)


@dataclass
class LiveBatch:
    """The rows being generated: `rows[i]` lives in slot i of the cache and fills `lengths[i]` places of it."""

    policy: Policy
    max_tokens: int  # prompt tokens in one forward pass
    cache: SlotCache
    decoding: Decoding
    rows: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @property
    def free(self) -> int:
        """Empty slots."""
        return self.cache.slots - len(self.rows)

    @property
    def has_room(self) -> bool:
        """Whether a prefill is worth it: a quarter of the slots is free, so that new rows enter in packs."""
        return not self.rows or self.free >= max(1, self.cache.slots // 4)

    def enter(self, rows: list[int], prompts: list[list[int]]) -> Tensor:
        """Prefill new rows, a prompt of several rows once; logits of their first response token, [rows, vocabulary]."""
        device = self.policy.device
        slots: dict[tuple[int, ...], list[int]] = {}
        for slot, ids in enumerate(prompts, start=len(self.rows)):
            slots.setdefault(tuple(ids), []).append(slot)
        distinct = list(slots)
        logits = []
        for group in row_groups([len(ids) for ids in distinct], self.max_tokens, len(distinct)):
            group_prompts = distinct[group.start : group.stop]
            lengths = torch.tensor([len(ids) for ids in group_prompts], device=device)
            tokens = torch.tensor([token for ids in group_prompts for token in ids], device=device)
            plan = Prefill(
                self.cache, tuple(map(len, group_prompts)), tuple(tuple(slots[ids]) for ids in group_prompts)
            )
            states = states_at(self.policy, tokens, places_in_row(lengths), plan, lengths.cumsum(0) - 1)
            logits.append(logits_of(self.policy, states))
        self.rows.extend(rows)
        self.lengths.extend(map(len, prompts))
        numbers = {ids: number for number, ids in enumerate(distinct)}
        return torch.cat(logits)[[numbers[tuple(ids)] for ids in prompts]]

    def step(self, tokens: Tensor) -> Tensor:
        """Feed each live row its newest token; logits of the next, [live, vocabulary]."""
        logits = self.decoding.logits(tokens, self.lengths)
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def leave(self, finished: set[int]) -> None:
        """Free the slots of finished rows; the last live row moves into each gap."""
        for slot in reversed(range(len(self.rows))):
            if self.rows[slot] not in finished:
                continue
            last = len(self.rows) - 1
            if slot != last:
                self.cache.move(last, slot, self.lengths[last])
                self.rows[slot], self.lengths[slot] = self.rows[last], self.lengths[last]
            self.rows.pop()
            self.lengths.pop()


@dataclass
class Responses:
    """What has been sampled so far, one line per row of the prompts."""

    limits: list[int]
    counts: list[int]
    finished: list[bool]
    tokens: Tensor  # [rows, longest limit]
    logprobs: Tensor  # [rows, longest limit]
    top: TopLogprobs | None  # [rows * longest limit, k]

    @staticmethod
    def empty(limits: list[int], top_k: int, trunk: torch.nn.Module) -> "Responses":
        """Room for `limits` tokens in each row."""
        weight = next(trunk.parameters())
        shape = (len(limits), max(limits))
        dtype, device = torch.promote_types(weight.dtype, torch.float32), weight.device
        places = shape[0] * shape[1]
        top = TopLogprobs(
            ids=torch.zeros(places, top_k, dtype=torch.long, device=device),
            logprobs=torch.zeros(places, top_k, dtype=dtype, device=device),
        )
        return Responses(
            limits=limits,
            counts=[0] * len(limits),
            finished=[False] * len(limits),
            tokens=torch.zeros(shape, dtype=torch.long, device=device),
            logprobs=torch.zeros(shape, dtype=dtype, device=device),
            top=top if top_k else None,
        )

    def places(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Where the next token of each of the rows belongs, as an index; one copy to the device for all of its uses."""
        row_and_place = torch.tensor([rows, [self.counts[row] for row in rows]], device=self.tokens.device)
        return row_and_place[0], row_and_place[1]

    def ids(self, row: int) -> list[int]:
        """The tokens of one row."""
        ids: list[int] = self.tokens[row, : self.counts[row]].tolist()
        return ids

    def last_tokens(self, rows: list[int]) -> Tensor:
        """The newest token of each of the rows."""
        numbers, places = self.places(rows)
        return self.tokens[numbers, places - 1]

    def add(self, places: tuple[Tensor, Tensor], chosen: Tensor, logprobs: Tensor) -> None:
        """Put down a token at each of the places, with its log-probability, and the top tokens if they are recorded."""
        self.tokens[places] = chosen
        self.logprobs[places] = logprobs.gather(-1, chosen[:, None])[:, 0]
        if self.top is not None:
            ids = logprobs.topk(self.top.ids.shape[-1], dim=-1).indices
            ids[:, -1] = torch.where((ids == chosen[:, None]).any(-1), ids[:, -1], chosen)
            flat = places[0] * self.tokens.shape[1] + places[1]
            self.top.ids[flat], self.top.logprobs[flat] = ids, logprobs.gather(-1, ids)

    def count(self, rows: list[int], newest: list[int], stop_ids: tuple[int, ...]) -> set[int]:
        """Note the token that each of the rows got; the rows that are done: by a stop token, or by their limit."""
        for row, token in zip(rows, newest, strict=True):
            self.counts[row] += 1
            self.finished[row] = token in stop_ids
        return {row for row in rows if self.finished[row] or self.counts[row] == self.limits[row]}

    def rollout(self, prompts: Prompts, version: int) -> Rollout:
        """Prompts and responses laid back to back."""
        device = self.tokens.device
        counts = torch.tensor(self.counts, device=device)
        taken = (row_numbers(counts), places_in_row(counts))
        responses = self.tokens[taken].split(self.counts)
        pieces = [
            piece
            for ids, response in zip(prompts.ids, responses, strict=True)
            for piece in (torch.tensor(ids, device=device), response)
        ]
        prompt_lengths = torch.tensor([len(ids) for ids in prompts.ids], device=device)
        row_lengths = prompt_lengths + counts
        is_action = places_in_row(row_lengths) >= prompt_lengths[row_numbers(row_lengths)]
        flat = taken[0] * self.tokens.shape[1] + taken[1]
        return Rollout(
            tokens=torch.cat(pieces),
            is_action=is_action,
            row_lengths=row_lengths,
            logprobs=self.logprobs[taken],
            finished=torch.tensor(self.finished, device=device),
            policy_version=torch.full_like(counts, version),
            top=self.top and TopLogprobs(self.top.ids[flat], self.top.logprobs[flat]),
        )
