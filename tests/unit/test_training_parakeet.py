"""Parakeet-tiny's training: the transducer's loss is right, a run can be interrupted, and what comes out is served."""

from __future__ import annotations

import json
import tarfile

import pytest
import torch
from support_training import corpus, needs_synthesisers
from test_parakeet_engine import Recogniser

from support import speechlike
from triton_voice.checkpoints import parakeet as maker
from triton_voice_training import corpus as corpora
from triton_voice_training import hearing, parakeet, parakeet_evaluation
from triton_voice_training.rnnt import rnnt_loss

CPU = torch.device("cpu")
SHAPE = maker.Shape(
    mels=80, layers=2, width=32, heads=2, subsampling_channels=8, predictor=16, predictor_layers=1, joint=16,
    vocabulary=40, bias=True,
)  # fmt: skip
TEXTS = [f"{verb} the {thing}" for verb in ("dim", "open", "call", "stop") for thing in ("light", "door", "radio")]
STEPS = 6
BLANK = 5


def reference(logits, targets, blank):
    """Graves 2012, equation 16, node by node, for one utterance: logits (T, U + 1, classes)."""
    scores = logits.log_softmax(-1)
    frames, states = logits.shape[:2]
    forward = {(0, 0): torch.zeros((), dtype=logits.dtype)}
    for t in range(frames):
        for u in range(states):
            ways = []
            if t:
                ways.append(forward[t - 1, u] + scores[t - 1, u, blank])
            if u:
                ways.append(forward[t, u - 1] + scores[t, u - 1, targets[u - 1]])
            if ways:
                forward[t, u] = torch.logsumexp(torch.stack(ways), 0)
    return -(forward[frames - 1, states - 1] + scores[frames - 1, states - 1, blank])


@pytest.mark.parametrize(
    ("frames", "tokens"),
    [([7, 5, 1, 3], [4, 0, 2, 4]), ([1], [0]), ([1, 1], [3, 3]), ([6, 6], [0, 0]), ([2, 6], [5, 1])],
)
def test_the_transducers_loss_and_gradient_are_those_of_the_definition(frames, tokens):
    torch.manual_seed(0)
    duration, states, batch = max(frames), max(tokens) + 1, len(frames)
    logits = torch.randn(batch, duration, states, BLANK + 1, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, BLANK, (batch, states - 1))
    weights = torch.rand(batch, dtype=torch.float64)
    loss = rnnt_loss(logits, targets, torch.tensor(frames), torch.tensor(tokens), BLANK)
    (gradient,) = torch.autograd.grad((loss * weights).sum(), logits)
    expected = torch.stack(
        [
            reference(logits[i, :t, : u + 1], targets[i, :u].tolist(), BLANK)
            for i, (t, u) in enumerate(zip(frames, tokens, strict=True))
        ]
    )
    (right,) = torch.autograd.grad((expected * weights).sum(), logits)
    assert torch.allclose(loss, expected, atol=1e-9)
    assert torch.allclose(gradient, right, atol=1e-9)
    for i, (t, u) in enumerate(zip(frames, tokens, strict=True)):  # what is padding moves nothing
        assert not gradient[i, t:].any() and not gradient[i, :, u + 1 :].any()


def trainer(folder, start=None):
    plan = parakeet.Plan(SHAPE, batch=3, steps=STEPS, seed=1, start=start)
    if not (folder / "tokenizer").exists():
        maker.train_tokenizer(folder / "tokenizer", TEXTS, SHAPE.vocabulary)
    tokens = parakeet.tokens_of(folder / "tokenizer", TEXTS)
    return parakeet.Trainer(plan, folder, hearing.Batches(corpus(TEXTS), tokens, plan.batch, plan.seed, CPU), CPU)


def steps(learner, count):
    return [learner.take_step() for _ in range(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training that ran through, and its losses."""
    learner = trainer(tmp_path_factory.mktemp("whole"))
    return learner, steps(learner, STEPS)


def test_an_interrupted_run_gives_what_an_uninterrupted_one_gives(trained, tmp_path):
    whole, losses = trained
    assert {"ctc"} == set(losses[0]) - {"rate"} and "rnnt" in losses[-1]  # all stages of the plan
    first = trainer(tmp_path)
    before = steps(first, STEPS // 2)
    hearing_now = hearing.trial(corpus(TEXTS), CPU, 2)
    parakeet_evaluation.errors(first.model, hearing_now, parakeet_evaluation.QUICK_LOOKAHEAD)  # judging changes nothing
    before += steps(first, 1)
    first.save()
    steps(first, 1)  # lost
    second = trainer(tmp_path)
    assert second.step == STEPS // 2 + 1
    assert before + steps(second, STEPS - second.step) == losses
    assert second.progress == 1
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weight), name


def test_another_training_begins_with_the_weights_of_an_earlier_one(trained, tmp_path):
    """At a lower rate and with the transducer's loss from the first step: it can hear already."""
    trained[0].save()
    later = trainer(tmp_path, start=trained[0].folder)
    assert later.step == 0
    for name, weight in trained[0].model.state_dict().items():
        assert torch.equal(later.model.state_dict()[name], weight), name
    (losses,) = steps(later, 1)
    assert "rnnt" in losses and losses["rate"] < trained[1][0]["rate"] and not later.batches.easy


def test_a_state_of_another_shape_is_refused(trained, tmp_path):
    import typer

    trained[0].save()
    (tmp_path / "state.pt").write_bytes((trained[0].folder / "state.pt").read_bytes())
    maker.train_tokenizer(tmp_path / "tokenizer", TEXTS, 30)
    other = maker.Shape(**{**vars(SHAPE), "vocabulary": 30})
    with pytest.raises(typer.BadParameter, match="another shape; remove it"):
        parakeet.Trainer(parakeet.Plan(other, steps=1), tmp_path, trained[0].batches, CPU)


def test_the_exported_file_is_small_and_streams_what_it_hears_offline(trained, tmp_path):
    learner, _ = trained
    # After six steps all is blank; as in the random checkpoints, tokens are brought into reach.
    maker._calibrate(learner.model.eval(), maker.LOGIT_SCALE, maker.BLANK_RATE)
    path, again = (parakeet.export(learner, tmp_path / name / "parakeet.nemo") for name in ("a", "b"))
    assert path.read_bytes() == again.read_bytes()
    with tarfile.open(path) as archive:
        weights = torch.load(archive.extractfile("./model_weights.ckpt"), map_location="cpu", weights_only=True)
    kinds = {name.split(".")[0]: weight.dtype for name, weight in weights.items() if weight.is_floating_point()}
    assert kinds == {
        "preprocessor": torch.float32, "encoder": torch.float16, "decoder": torch.float16, "joint": torch.float16
    }  # fmt: skip
    served = Recogniser(str(path))
    texts = set()
    try:
        for latency_ms in (80, 160, 1120):
            for seed in range(2):
                audio = speechlike(3, seed)
                expected = served.offline(audio, latency_ms)
                texts.add(expected)
                for sizes in ([len(audio)], [1, 4001, 77, 900]):
                    assert served.stream(audio, sizes, latency_ms)[-1].text == expected
    finally:
        served.engine.close()
    assert len(texts) > 2


@needs_synthesisers
def test_the_command_speaks_trains_measures_and_carries_on(tmp_path, monkeypatch):
    """In the smallest size: a few sentences, two steps, then two more."""
    for name, value in (("JUDGED_REQUESTS", 4), ("JUDGED_REPLIES", 2), ("SHORT_COPIES", 1), ("EMPTY_CLIPS", 2)):
        monkeypatch.setattr(hearing, name, value)
    amount = hearing.Amount(requests=12, request_copies=1, replies=12)
    shape = maker.Shape(**{**vars(SHAPE), "vocabulary": 90})
    for total in (2, 4):
        figures = parakeet.train(parakeet.Plan(shape, amount, batch=2, steps=total), tmp_path, CPU, workers=1)
        assert figures["steps"] == total
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(figures))
    assert set(figures["word_error_rate"]) == {"seen", "seen_augmented", "unseen", "unseen_augmented"}
    assert set(figures["word_error_rate"]["unseen"]) == {"80", "160", "560", "1120"}
    assert figures["empty_clips"] == 8
    assert figures["bytes"] == (tmp_path / "parakeet.nemo").stat().st_size
    assert (tmp_path / "training.png").stat().st_size > 0
    assert len(corpora.load(tmp_path / "speech" / "seen")) == 6
