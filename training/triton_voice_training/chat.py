"""Trains Nemotron-tiny, the small world's chat model: a Llama of a few million parameters with a tokenizer of its own.

    python -m triton_voice_training.chat train --out build/chat --steps 8000     # goes on where an earlier run stopped
    python -m triton_voice_training.chat evaluate build/chat/export
    python -m triton_voice_training.chat export build/chat checkpoints/nemotron-tiny

Data is drawn while training goes on, shard by shard from the seed, so the same seed and number of steps see the same
batches in the same order. The loss is cross-entropy on the assistant's own tokens alone.
"""

from __future__ import annotations

import collections
import concurrent.futures
import json
import multiprocessing
import os
import random
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from triton_voice_training import chat_evaluation, chat_tokens
from triton_voice_training.chat_data import example

if TYPE_CHECKING:
    import torch

    from triton_voice_training import runs

EXPORT, PLOT, TOKENIZER = "export", "training.png", "tokenizer"
#: Conversations drawn together; batches are cut from them by length, so that hardly anything is padded.
SHARD_EXAMPLES = 2048
#: Exchanges of a conversation, least and most, and how many in a hundred are drawn from each range.
TURNS = {(1, 6): 60, (4, 12): 32, (12, 24): 8}
#: Lengths are padded to a multiple of this.
PAD_TO = 16
PEAK_LEARNING_RATE, FINAL_RATE = 2e-3, 0.005
WARM_UP_STEPS = 150
WEIGHT_DECAY, CLIP_NORM, BETAS = 0.05, 1.0, (0.9, 0.95)
IGNORED = -100
LOG_EVERY_STEPS = 50
SAVE_EVERY_S = 120.0

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
console = Console()

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Settings:
    """What decides a run; kept with its state, so that a run that goes on is the same one.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of decoder layers.
        heads: Query heads of 32 channels.
        kv_heads: Key and value heads.
        intermediate: Width inside the MLP.
        batch_tokens: Tokens of a batch, padding included.
        seed: Of weights and data.
    """

    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 640
    batch_tokens: int = 8192
    seed: int = 0


def model_config(settings: Settings, tokenizer: Any) -> Any:
    """Returns the `transformers.LlamaConfig` of a run."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=32,
        intermediate_size=settings.intermediate,
        max_position_embeddings=chat_tokens.MAX_POSITIONS,
        rms_norm_eps=1e-5,
        # Tied, tokens that stand in the same places (AM and PM) grow together and are never told apart.
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


_worker_tokenizer: Any = None


def _start_worker(folder: str) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_tokenizer = chat_tokens.load_tokenizer(Path(folder))


def _shard(seed: int, index: int, batch_tokens: int) -> list[Batch]:
    """Draws a shard and cuts it into batches of ids and labels, both (rows, tokens)."""
    rng = random.Random(f"chat {seed} {index}")
    ranges, weights = list(TURNS), list(TURNS.values())
    drawn = [example(rng, rng.randint(*rng.choices(ranges, weights)[0])) for _ in range(SHARD_EXAMPLES)]
    encoded = sorted((chat_tokens.encode(_worker_tokenizer, each) for each in drawn), key=lambda each: len(each.ids))
    batches, row = [], 0
    while row < len(encoded):
        rows = 1
        while row + rows < len(encoded) and _padded(len(encoded[row + rows].ids)) * (rows + 1) <= batch_tokens:
            rows += 1
        batches.append(_batch(encoded[row : row + rows]))
        row += rows
    rng.shuffle(batches)
    return batches


def _padded(length: int) -> int:
    return -(-length // PAD_TO) * PAD_TO


def _batch(rows: list[chat_tokens.Encoded]) -> Batch:
    width = _padded(max(len(row.ids) for row in rows))
    # Padding is on the right of a causal model and has no label, so any id does and no mask is needed.
    ids = np.zeros((len(rows), width), np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = row.ids
        labels[at, : len(row.ids) - 1] = np.where(row.learned[1:], row.ids[1:].astype(np.int64), IGNORED)
    return ids, labels


def batches(
    settings: Settings, tokenizer_folder: Path, begin: int, workers: int
) -> Generator[tuple[int, Batch], None, None]:
    """Yields batches for ever, each with the index of its shard.

    Args:
        settings: Seed and size.
        tokenizer_folder: Where the tokenizer is.
        begin: The first shard.
        workers: Processes that draw ahead; 0 draws in this one.
    """
    shards = (begin + offset for offset in range(10**9))
    if not workers:
        _start_worker(str(tokenizer_folder))
        for index in shards:
            for batch in _shard(settings.seed, index, settings.batch_tokens):
                yield index, batch
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (str(tokenizer_folder),)) as pool:
        ahead: collections.deque[tuple[int, concurrent.futures.Future[list[Batch]]]] = collections.deque()
        try:
            while True:
                while len(ahead) < 2 * workers:
                    index = next(shards)
                    ahead.append((index, pool.submit(_shard, settings.seed, index, settings.batch_tokens)))
                index, future = ahead.popleft()
                for batch in future.result():
                    yield index, batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Trainer:
    """The model, its optimizer and where they stand.

    Args:
        folder: Of the run.
        settings: What the run is; of one that goes on, the kept ones count.
        device: Where to train.
    """

    def __init__(self, folder: Path, settings: Settings, device: torch.device):
        import torch
        from transformers import LlamaForCausalLM

        self.device = device
        self.settings = settings
        if not (folder / TOKENIZER / "tokenizer.json").exists():
            console.print("training the tokenizer ...")
            chat_tokens.train_tokenizer().save_pretrained(str(folder / TOKENIZER))
        self.tokenizer = chat_tokens.load_tokenizer(folder / TOKENIZER)
        torch.manual_seed(settings.seed)
        self.model = LlamaForCausalLM(model_config(settings, self.tokenizer)).to(device)
        decayed = [weight for name, weight in self.model.named_parameters() if weight.ndim == 2 and "embed" not in name]
        others = [weight for name, weight in self.model.named_parameters() if weight.ndim != 2 or "embed" in name]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=BETAS, fused=True)

    def learn(self, batch: Batch) -> torch.Tensor:
        """Makes one step; returns the loss, a scalar on the device."""
        import torch
        from torch.nn import functional

        ids, labels = (torch.from_numpy(part).to(self.device, non_blocking=True) for part in batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            learned = labels != IGNORED
            logits = self.model.lm_head(hidden[learned])
        loss = functional.cross_entropy(logits.float(), labels[learned])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that is there goes on.")],
    steps: Annotated[int, typer.Option(help="End after so many steps.")] = 0,
    minutes: Annotated[float, typer.Option(help="End after so many minutes, earlier sessions counted in.")] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    seed: Annotated[int, typer.Option(help="Of weights and data.")] = 0,
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a batch.")] = Settings.batch_tokens,
    layers: Annotated[int, typer.Option(help="Decoder layers.")] = Settings.layers,
    hidden: Annotated[int, typer.Option(help="Width, a multiple of 64.")] = Settings.hidden,
    workers: Annotated[int, typer.Option(help="Processes that draw data; 0 draws it in this one.")] = 0,
) -> None:
    """Train, or go on; at the end the model is exported to OUT/export."""
    import torch

    from triton_voice_training import runs

    if not steps and not minutes:
        raise typer.BadParameter("give --steps, --minutes or both")
    run = runs.Run(out, "Nemotron-tiny", steps, minutes)
    stored = run.resume()
    asked = Settings(
        hidden=hidden, layers=layers, heads=hidden // 32, kv_heads=hidden // 64, intermediate=hidden * 5 // 2,
        batch_tokens=batch_tokens, seed=seed,
    )  # fmt: skip
    # On a GPU sums run in any order unless told otherwise; what has no ordered form is only warned about.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    trainer = Trainer(
        out, Settings(**stored["settings"]) if stored else asked, runs.pick_device(device, equal_shapes=False)
    )
    if stored:
        run.resume(model=trainer.model, optimizer=trainer.optimizer)
    _loop(run, trainer, stored.get("shard", 0), stored.get("tokens", 0), workers)
    export(out, out / EXPORT)
    if (out / runs.LOG_FILE).exists():  # a run of a few steps has none
        runs.draw_log(out / runs.LOG_FILE, out / PLOT, {"loss": "loss, nats a token", "rate": "learning rate"})


def _loop(run: runs.Run, trainer: Trainer, shard: int, tokens: int, workers: int) -> None:
    from triton_voice_training import runs

    parameters = sum(weight.numel() for weight in trainer.model.parameters())
    console.print(f"{parameters / 1e6:.2f} M parameters, {trainer.device}, from step {run.step}")
    data = batches(trainer.settings, run.folder / TOKENIZER, shard, workers)
    losses: list[torch.Tensor] = []
    saved = run.seconds
    state = {"settings": asdict(trainer.settings), "shard": shard, "tokens": tokens}
    for step in run.steps():
        shard, batch = next(data)
        rate = runs.learning_rate(run.progress, step, PEAK_LEARNING_RATE, WARM_UP_STEPS, FINAL_RATE)
        runs.set_rate(trainer.optimizer, rate)
        losses.append(trainer.learn(batch))
        tokens += batch[0].size
        # A run that goes on begins with the next whole shard: none is learned twice.
        state |= {"shard": shard + 1, "tokens": tokens}
        if (step + 1) % LOG_EVERY_STEPS == 0:
            run.log(loss=float(sum(losses)) / len(losses), rate=rate, tokens=tokens)
            losses.clear()
        if run.seconds - saved > SAVE_EVERY_S:
            run.save(model=trainer.model, optimizer=trainer.optimizer, **state)
            saved = run.seconds
    data.close()
    run.save(model=trainer.model, optimizer=trainer.optimizer, **state)


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: a Hugging Face model.")],
) -> None:
    """Write a run's model as it is now in half precision, as vLLM and transformers load it."""
    export(run, out)


def export(run: Path, out: Path) -> None:
    """Writes the Hugging Face folder of a run.

    The weights are stored in float16, half the bytes, and computed with in float32 (`dtype` in config.json): on a CPU
    that is exact and as fast; on a GPU vLLM turns float32 into its own half precision.
    """
    import torch
    from safetensors.torch import save_file

    from triton_voice_training import runs

    state = torch.load(run / runs.STATE_FILE, map_location="cpu", weights_only=True)
    tokenizer = chat_tokens.load_tokenizer(run / TOKENIZER)
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.half().contiguous() for name, weight in state["model"].items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone
    tokenizer.save_pretrained(str(out))
    # The name that transformers 4 knows as well.
    told = json.loads((out / "tokenizer_config.json").read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    config = model_config(Settings(**state["settings"]), tokenizer)
    config.dtype = "float32"
    config.save_pretrained(str(out))
    generation = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    console.print(f"exported step {state['step']} to {out}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="An exported model.")],
    dialogues: Annotated[int, typer.Option(help="Held-out dialogues of each kind.")] = 300,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the dialogues.")] = 0,
) -> None:
    """Count exact or accepted replies on held-out dialogues, by intent, thinking and not, with tools and without."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    result = chat_evaluation.evaluate(model, dialogues, device, seed)
    console.print(chat_evaluation.table(result))
    for miss in result.misses[:20]:
        console.print(miss, markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@app.command()
def card(
    model: Annotated[Path, typer.Argument(help="An exported model.")],
    log: Annotated[Path, typer.Option(help="The run's log.jsonl.")],
    report: Annotated[Path, typer.Option(help="What `evaluate --json` wrote.")],
    machine: Annotated[str, typer.Option(help="What it was trained on, e.g. 'one NVIDIA H200'.")],
    batch_tokens: Annotated[int, typer.Option(help="Tokens of a batch.")] = Settings.batch_tokens,
) -> None:
    """Write the model card and the training curve into an exported model."""
    from triton_voice_training import chat_card

    chat_card.write(model, log, json.loads(report.read_text()), machine, batch_tokens)


if __name__ == "__main__":
    app()
