"""A tiny model of random weights that sees: BLIP-2's shape (a ViT, a Q-Former, an OPT), for tests of images.

BLIP-2, because it is one of the few whose code in transformers and vLLM runs without torchvision.
"""

from __future__ import annotations

from pathlib import Path

IMAGE_TOKEN = "<image>"
PIXELS, PATCH = 28, 14
#: Tokens that a picture takes in the prompt.
IMAGE_TOKENS = 4


def make(out: Path, language_model: Path) -> Path:
    """Write a checkpoint with the tokenizer of a tiny language model.

    Args:
        out: Folder to write into; it is created.
        language_model: A folder made by `triton_voice.checkpoints.llm`.

    Returns:
        The folder `out`.
    """
    import torch
    from transformers import AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, OPTConfig
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    out.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(str(language_model))
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    eyes = BlipImageProcessorPil(size={"height": PIXELS, "width": PIXELS})
    Blip2Processor(eyes, tokenizer, num_query_tokens=IMAGE_TOKENS).save_pretrained(str(out))
    width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = OPTConfig(
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        init_std=0.2,
    )
    config = Blip2Config(
        vision_config={**width, "image_size": PIXELS, "patch_size": PATCH, "initializer_range": 0.2},
        qformer_config={**width, "encoder_hidden_size": 64, "vocab_size": 8, "initializer_range": 0.2},
        text_config=text.to_dict(),
        num_query_tokens=IMAGE_TOKENS,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)  # zeros otherwise, blind
    model.save_pretrained(str(out))
    return out
