"""The greedy decoder with fused kernels: what runs on CUDA devices that the Triton language compiles for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]

from parakeet_engine import kernels
from parakeet_engine.decoder import DecoderState, GreedyDecoder, Hypotheses
from parakeet_engine.fused_products import FEW_ROWS, compare, product, starts_early


class FusedGreedyDecoder(GreedyDecoder):
    """`GreedyDecoder` whose iteration is a few kernels.

    Args:
        model: The NeMo model, whose predictor is `torch.nn.LSTM` and whose joint adds and rectifies.

    Raises:
        TypeError: Predictor or joint are of another kind.
    """

    def __init__(self, model: Any):
        super().__init__(model)
        lstm = getattr(model.decoder.prediction["dec_rnn"], "lstm", None)
        activation, *_, self._out = [part for part in model.joint.joint_net if not isinstance(part, torch.nn.Dropout)]
        if type(lstm) is not torch.nn.LSTM or lstm.proj_size or not lstm.bias or lstm.bidirectional:
            raise TypeError(f"there are no fused kernels for the predictor {lstm}")
        if type(activation) is not torch.nn.ReLU or model.joint.temperature != 1.0:
            raise TypeError(f"there are no fused kernels for the joint network {model.joint.joint_net}")
        self._project = model.joint.pred
        self._layers: list[list[Any]] = [
            lstm._flat_weights[4 * layer : 4 * layer + 4] for layer in range(lstm.num_layers)
        ]
        with torch.inference_mode():
            inputs, _, bias_in, bias_hidden = self._layers[0]
            self._table = F.linear(model.decoder.prediction["embed"].weight, inputs, bias_in + bias_hidden)
            self._biases = [None, *((own[2] + own[3]) for own in self._layers[1:])]

    @torch.inference_mode()
    def check(self, plain: GreedyDecoder) -> None:
        """Compares an iteration with PyTorch's decoder on noise, for few rows and for many; compiles the kernels.

        Raises:
            RuntimeError: They differ by more than rounding.
        """
        device, width = self.start.prediction.device, self.start.prediction.shape[1]
        for batch in (1, FEW_ROWS + 1):
            generator = torch.Generator(device).manual_seed(0)
            encoded = torch.randn(batch, 2, width, generator=generator, device=device).to(self.start.prediction.dtype)
            length = torch.full((batch,), 2, device=device)
            states, first = [], []
            for decoder in (self, plain):
                start = self.start
                state = DecoderState(
                    start.hidden.repeat(1, batch, 1), start.cell.repeat(1, batch, 1), start.prediction.repeat(batch, 1)
                )
                hypotheses, frame, symbols = self.begin(batch, 2, device)
                decoder.iterate(encoded, length, state, hypotheses, frame, symbols, predict_always=True)
                states.append(state.prediction)
                first.append(torch.where(hypotheses.count > 0, hypotheses.tokens[:, 0], -1))
            same = first[0] == first[1]  # rounding may turn a choice between two symbols that are as likely
            if 2 * int(same.sum()) < batch:
                raise RuntimeError("the fused kernels choose other symbols than PyTorch's")
            compare("the decoder", states[0][same], states[1][same])

    def iterate(
        self,
        encoded: torch.Tensor,
        length: torch.Tensor,
        state: DecoderState,
        hypotheses: Hypotheses,
        frame: torch.Tensor,
        symbols: torch.Tensor,
        predict_always: bool,
    ) -> None:
        """See `GreedyDecoder`; the predictor always runs."""
        batch, frames, width = encoded.shape
        joined = encoded.new_empty(batch, width)
        grid, hidden_width = (batch,), state.hidden.shape[2]
        early = batch <= FEW_ROWS and starts_early(encoded.device)
        padded = triton.next_power_of_2(hidden_width)
        kernels.combine[grid](
            encoded, state.prediction, frame, joined, frames, width, WIDTH=triton.next_power_of_2(width), EARLY=early,
            launch_pdl=early,
        )  # fmt: skip
        logits = product(joined, self._out.weight, self._out.bias)
        chosen, emitted = torch.empty_like(frame), torch.empty_like(hypotheses.unfinished)
        kernels.choose[grid](
            logits, length, frame, symbols, hypotheses.count, hypotheses.unfinished, hypotheses.tokens,
            hypotheses.frames, hypotheses.probabilities, chosen, emitted, self._blank, hypotheses.tokens.shape[1],
            self.max_symbols, logits.shape[1], SIZE=triton.next_power_of_2(logits.shape[1]), EARLY=early,
            launch_pdl=early,
        )  # fmt: skip
        for index, (inputs, recurrent, *_) in enumerate(self._layers):
            gates = product(state.hidden[index], recurrent)
            if index:
                gates = product(state.hidden[index - 1], inputs, self._biases[index], added=gates)
            kernels.remember[grid](
                gates, self._table, chosen, emitted, state.hidden[index], state.cell[index], hidden_width,
                FROM_TABLE=index == 0, WIDTH=padded, EARLY=early, launch_pdl=early,
            )  # fmt: skip
        # Where nothing was emitted this is what it was: the state has not changed.
        product(state.hidden[-1], self._project.weight, self._project.bias, out=state.prediction)
