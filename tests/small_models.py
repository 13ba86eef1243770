"""Small teachers that are no BERT: a RoBERTa with byte-level pieces, a DistilBERT without token types."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from conftest import VOCABULARY, WORDS

PAIR = ["negative", "positive"]


def make_roberta(folder: Path, *, layers: int = 4, hidden: int = 32, pieces: int = 400, seed: int = 3) -> Path:
    """A random RoBERTa classifier with a byte-level BPE tokenizer of its own, trained on a few sentences.

    With few `pieces` it reads more tokens than BERT does, with many it reads whole words.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = ByteLevelBPETokenizer()
    draw = random.Random(0)
    sentences = [" ".join(draw.choices([*WORDS, "zxqjvk", "qqzzxx"], k=20)) for _ in range(200)]
    tokenizer.train_from_iterator(sentences, vocab_size=pieces, min_frequency=1, special_tokens=special)
    tokenizer.save_model(str(folder))
    RobertaTokenizerFast.from_pretrained(folder, model_max_length=512).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * hidden, max_position_embeddings=130, type_vocab_size=1, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, id2label=dict(enumerate(PAIR)), label2id={label: i for i, label in enumerate(PAIR)},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = RobertaForSequenceClassification(config)
    with torch.no_grad():  # logits that differ between examples
        model.classifier.dense.weight.mul_(30)
        model.classifier.out_proj.weight.mul_(30)
    model.save_pretrained(folder)
    return folder


def make_masked_roberta(folder: Path) -> Path:
    """A random RoBERTa with the head of a masked-LM, and byte-pair pieces that are whole words."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    make_roberta(folder, layers=2, pieces=1000)
    torch.manual_seed(5)
    RobertaForMaskedLM(RobertaConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def make_masked_xlm_roberta(folder: Path) -> Path:
    """A random XLM-RoBERTa with the head of a masked-LM, and SentencePiece pieces (unigram) that are whole words."""
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaTokenizerFast

    pieces = ["<s>", "<pad>", "</s>", "<unk>"]
    scores = [(piece, 0.0) for piece in pieces]
    scores += [(f"▁{word}", -1.0) for word in dict.fromkeys(WORDS)]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-"
    scores += [("▁", -4.0), *((letter, -5.0) for letter in letters), ("ing", -3.0), ("good", -4.5), ("▁7", -4.0)]
    tokenizer = XLMRobertaTokenizerFast(vocab=[*scores, ("<mask>", 0.0)], model_max_length=512)
    tokenizer.save_pretrained(folder)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=130, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(6)
    XLMRobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def make_distilbert(folder: Path, *, layers: int = 4, hidden: int = 32, types: bool = False, seed: int = 4) -> Path:
    """A random DistilBERT classifier with the vocabulary of `make_bert`.

    Args:
        types: save BERT's tokenizer, which gives token types, beside the model, which takes none.
    """
    from tokenizers import BertWordPieceTokenizer
    from transformers import (
        BertTokenizerFast,
        DistilBertConfig,
        DistilBertForSequenceClassification,
        DistilBertTokenizerFast,
    )

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True).save(str(folder / "tokenizer.json"))
    kind = BertTokenizerFast if types else DistilBertTokenizerFast
    kind(
        tokenizer_file=str(folder / "tokenizer.json"),
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"]
        if types
        else ["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = DistilBertConfig(
        vocab_size=len(VOCABULARY), dim=hidden, n_layers=layers, n_heads=2, hidden_dim=2 * hidden,
        max_position_embeddings=64, id2label=dict(enumerate(PAIR)), label2id={label: i for i, label in enumerate(PAIR)},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = DistilBertForSequenceClassification(config)
    with torch.no_grad():
        model.pre_classifier.weight.mul_(30)
        model.classifier.weight.mul_(30)
    model.save_pretrained(folder)
    return folder
