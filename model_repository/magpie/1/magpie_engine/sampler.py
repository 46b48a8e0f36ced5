"""From hidden states to the codes of one step: the local transformer, sampling, and the end-of-speech rules.

Follows NeMo's `LocalTransformerHelper.sample_autoregressive` and `MagpieTTSModel.detect_eos`, without per-item Python.
Noise comes from outside, one uniform number per slot and codebook, so that a seed gives the same codes in any company.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from magpie_engine.cache import GUIDANCE_ROWS
from magpie_engine.layers import attend, feed_forward, project_qkv

if TYPE_CHECKING:
    from nemo.collections.tts.models.magpietts import MagpieTTSModel


@dataclass(frozen=True)
class SamplingState:
    """How to draw, for slots 0 to n-1.

    Attributes:
        temperature: (n,); 0 is greedy.
        top_k: (n,).
        max_top_k: The largest of `top_k`.
        cfg_scale: (n,).
        noise: Uniform in [0, 1), (n, codebooks x stacking).
        may_not_end: Slots where the end-of-speech token is forbidden, (n,).
        must_end: Slots where it is forced, (n,).
    """

    temperature: Tensor
    top_k: Tensor
    max_top_k: int
    cfg_scale: Tensor
    noise: Tensor
    may_not_end: Tensor
    must_end: Tensor


class CodebookSampler:
    """Samples the codebooks of one step one after another.

    Args:
        model: The restored model.
    """

    def __init__(self, model: MagpieTTSModel) -> None:
        from nemo.collections.tts.modules.magpietts_modules import EOSDetectionMethod, SpecialAudioToken

        self._norm = model.decoder.norm_out
        self._transformer = model.local_transformer
        self._project_in = model.local_transformer_in_projection
        self._project_out = model.local_transformer_audio_out_projection
        self._heads = model.local_transformer_out_projections
        self._parallel_heads = model.final_proj
        self._codebooks: int = model.num_audio_codebooks
        self._stacking: int = model.frame_stacking_factor
        self._end_token: int = model.audio_eos_id
        self._real_tokens: int = model.codebook_size
        method = EOSDetectionMethod(model.inference_parameters.eos_detection_method)
        self._detection = EOSDetectionMethod.detection_type(method)
        self._sampled_ends_count = EOSDetectionMethod.sampling_type(method) == "argmax_or_multinomial"
        with torch.inference_mode():
            #: Input of the local transformer after each draw but the last, by the code drawn, (tokens, width).
            self._next_inputs = [
                self._place(
                    self._project_in(model.audio_in_projection(model.audio_embeddings[number].weight)), number + 1
                )
                for number in range(self.draws - 1)
            ]
        self._forbidden = torch.zeros(model.num_all_tokens_per_codebook, dtype=torch.bool, device=model.device)
        self._forbidden[SpecialAudioToken.get_forbidden_tokens(self._real_tokens)] = True

    @property
    def draws(self) -> int:
        """Codes drawn in each step: codebooks times frame stacking."""
        return self._codebooks * self._stacking

    def draw(self, hidden: Tensor, state: Callable[[], SamplingState]) -> Tensor:
        """Draws one step's codes.

        Args:
            hidden: Decoder output before its last norm, (n, 2, width), conditioned and unconditioned.
            state: Gives how to draw; asked when that is needed.

        Returns:
            Codes (n, codebooks, stacking).
        """
        live = hidden.shape[0]
        x = self._first_input(hidden)
        how = state()
        cache: list[tuple[Tensor, Tensor] | None] = [None] * len(self._transformer.layers)
        drawn = []
        for draw in range(self.draws):
            out = self._project_out(self._local_step(x[:, None], cache))
            logits = _guide(self._heads[draw](out).float().view(live, GUIDANCE_ROWS, -1), how.cfg_scale)
            codes = _draw(self._restrict(logits, how.may_not_end, how.must_end), how, how.noise[:, draw])
            drawn.append(codes)
            if draw + 1 < self.draws:
                x = self._next_inputs[draw][codes].repeat_interleave(GUIDANCE_ROWS, dim=0)
        return self._stacked(torch.stack(drawn, dim=1))

    def _stacked(self, drawn: Tensor) -> Tensor:
        """Codes in the order in which they were drawn, (n, draws), as (n, codebooks, stacking)."""
        return drawn.view(len(drawn), self._stacking, self._codebooks).transpose(1, 2)

    def _first_input(self, hidden: Tensor) -> Tensor:
        """Input of the local transformer before the first draw, (n, 2, width) to (rows, its width)."""
        return self._place(self._project_in(self._norm(hidden.flatten(0, 1))), 0)

    def _place(self, x: Tensor, position: int) -> Tensor:
        """Adds the local transformer's embedding of a position."""
        positions = self._transformer.position_embeddings
        return x if positions is None else x + positions.weight[position]

    def _local_step(self, x: Tensor, cache: list[tuple[Tensor, Tensor] | None]) -> Tensor:
        """Runs the local transformer on the next position, (rows, 1, width) to (rows, width)."""
        transformer = self._transformer
        for index, layer in enumerate(transformer.layers):
            query, key, value = project_qkv(layer, x)
            past = cache[index]
            if past is not None:
                key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
            cache[index] = (key, value)
            x = x + attend(layer, query, key, value)
            x = x + feed_forward(layer, x)
        return transformer.norm_out(x)[:, 0]

    def _restrict(self, logits: Tensor, may_not_end: Tensor, must_end: Tensor) -> Tensor:
        """Leaves only tokens that may be drawn: real codes, and the end where it is allowed."""
        logits = logits.masked_fill(self._forbidden, float("-inf"))
        end = logits[:, self._end_token]
        logits = logits.masked_fill(must_end[:, None], float("-inf"))
        logits[:, self._end_token] = torch.where(must_end, 0.0, end.masked_fill(may_not_end, float("-inf")))
        return logits

    def likely_ends(self, hidden: Tensor, cfg_scale: Tensor) -> Tensor:
        """Asks the parallel heads whether the end of speech is the most likely code.

        Args:
            hidden: As for `draw`.
            cfg_scale: (n,).

        Returns:
            (n, stacking, codebooks).
        """
        # The heads are affine, so hidden states can be guided instead of their many logits.
        guided = _guide(self._norm(hidden), cfg_scale).to(hidden.dtype)
        logits = self._parallel_heads(guided).view(len(hidden), self._stacking, self._codebooks, -1)
        likely: Tensor = logits[..., self._end_token] > logits[..., : self._real_tokens].amax(dim=-1)
        return likely

    def find_end(self, codes: Tensor, likely: Tensor, state: SamplingState) -> Tensor:
        """Looks for the end in the drawn codes and in the most likely codes of the parallel heads.

        Args:
            codes: Result of `draw`.
            likely: Result of `likely_ends`.
            state: How they were drawn.

        Returns:
            Index of the first frame of the stack at which the speech is over, (n,); `stacking` if it goes on.
        """
        likely = (likely & ~state.may_not_end[:, None, None]) | state.must_end[:, None, None]
        ended = self._by_frame(likely)
        if self._sampled_ends_count:
            ended |= self._by_frame(codes.transpose(1, 2) == self._end_token)
        frames = torch.arange(self._stacking, device=codes.device)
        return torch.where(ended, frames, self._stacking).amin(dim=1)

    def _by_frame(self, is_end: Tensor) -> Tensor:
        """Combines the codebooks' votes, (n, stacking, codebooks) to (n, stacking)."""
        if self._detection == "any":
            return is_end.any(dim=2)
        return is_end.all(dim=2) if self._detection == "all" else is_end[:, :, 0]


def _guide(pair: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance: (n, 2, any) to (n, any)."""
    scale = scale[:, None]
    return scale * pair[:, 0] + (1.0 - scale) * pair[:, 1]


def _draw(logits: Tensor, state: SamplingState, noise: Tensor) -> Tensor:
    """Draws a token for each row by inverting the cumulative distribution of its `top_k` best: (n, tokens) to (n,)."""
    top = logits.topk(state.max_top_k, dim=1).values
    logits = logits.masked_fill(logits < top.gather(1, state.top_k[:, None] - 1), float("-inf"))
    greedy = state.temperature <= 0
    probabilities = (logits / torch.where(greedy, 1.0, state.temperature)[:, None]).softmax(dim=1)
    cumulative = probabilities.cumsum(dim=1)
    target = noise[:, None] * cumulative[:, -1:]
    drawn = (cumulative <= target).sum(dim=1).clamp_max(logits.shape[1] - 1)
    return torch.where(greedy, logits.argmax(dim=1), drawn)
