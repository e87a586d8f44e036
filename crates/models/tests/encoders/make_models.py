"""Makes tiny random encoders with Hugging Face transformers, and what transformers computes with them.

Usage: python make_models.py FOLDER (written for transformers 5.23, tokenizers 0.23, torch 2.15). Each model is a folder with config.json, tokenizer.json,
model.safetensors and reference.json: texts, token ids, and outputs of every text by itself.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig, BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification, BertModel,
    DistilBertConfig, DistilBertForMaskedLM, DistilBertForSequenceClassification,
    RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification, XLMRobertaConfig, XLMRobertaForTokenClassification,
)

TEXTS = [
    "the cat sits on the mat",
    "Paris is the capital of France.",
    "a dog",
    "",
    "the quick brown fox jumps over the lazy dog and then it runs far away over the hills",
]
CORPUS = TEXTS + ["cats and dogs run over hills", "France is far away", "a lazy cat sits on a quick brown fox"]


def word_pieces():
    words = sorted({word for text in CORPUS for word in text.lower().replace(".", " .").split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + words + ["##s", "##ing", "r", "##un", "m", "##a", "##t"]
    pieces = list(dict.fromkeys(pieces))
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", pieces.index("[CLS]")), ("[SEP]", pieces.index("[SEP]"))])
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    # As published files often have it; the pipeline must not be misled.
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(max_length=10)
    return tokenizer


def byte_pairs():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def unigrams():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tokenizer


def common(tokenizer):
    return dict(vocab_size=tokenizer.get_vocab_size(), initializer_range=0.4)


def bert(tokenizer, **more):
    return BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
                      max_position_embeddings=16, pad_token_id=0, **common(tokenizer), **more)


def roberta(tokenizer, config=RobertaConfig, **more):
    return config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=40,
                  type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-5, **common(tokenizer), **more)


def distilbert(tokenizer, **more):
    return DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=24, max_position_embeddings=16, **common(tokenizer), **more)


def labels(*names):
    return dict(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


def main(folder):
    words, pairs, grams = word_pieces(), byte_pairs(), unigrams()
    cases = {
        "bert": (words, BertModel(bert(words, hidden_act="gelu_new"))),
        "bert-sequence": (words, BertForSequenceClassification(bert(words, **labels("down", "flat", "up")))),
        "bert-token": (words, BertForTokenClassification(bert(words, **labels("O", "B-LOC", "I-LOC")))),
        "bert-masked": (words, BertForMaskedLM(bert(words))),
        "roberta-masked": (pairs, RobertaForMaskedLM(roberta(pairs))),
        "roberta-sequence": (pairs, RobertaForSequenceClassification(
            roberta(pairs, problem_type="multi_label_classification", **labels("a", "b")))),
        "xlm-roberta-token": (grams, XLMRobertaForTokenClassification(
            roberta(grams, XLMRobertaConfig, **labels("O", "B-LOC", "I-LOC")))),
        "distilbert-sequence": (words, DistilBertForSequenceClassification(distilbert(words, **labels("no", "yes")))),
        "distilbert-masked": (words, DistilBertForMaskedLM(distilbert(words))),
    }
    for number, (name, (tokenizer, model)) in enumerate(cases.items()):
        path = Path(folder) / name
        torch.manual_seed(number)
        model.init_weights()
        for parameter_name, parameter in model.named_parameters():
            # What init_weights leaves at 0 and 1 would hide a forgotten bias or norm.
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=float(parameter.mean()), std=0.1)
        model.tie_weights()
        model.eval()
        model.save_pretrained(path)
        (path / "generation_config.json").unlink(missing_ok=True)
        tokenizer.save(str(path / "tokenizer.json"), pretty=False)
        limit = model.config.max_position_embeddings - (2 if "roberta" in name else 0)
        plain = Tokenizer.from_str(tokenizer.to_str())
        plain.no_padding()
        plain.enable_truncation(max_length=limit)
        texts = TEXTS if "masked" not in name else [
            "the [MASK] sits on the mat", "Paris is the capital of [MASK].", "a dog [MASK]"]
        if "roberta" in name:
            texts = [text.replace("[MASK]", "<mask>") for text in texts]
        results = []
        for text in texts:
            encoding = plain.encode(text)
            with torch.no_grad():
                output = model(input_ids=torch.tensor([encoding.ids]), attention_mask=torch.tensor([encoding.attention_mask]))
            result = {"text": text, "ids": encoding.ids}
            for key in ("last_hidden_state", "pooler_output", "logits"):
                if key in output:
                    result[key] = [round(x, 5) for x in output[key][0].flatten().tolist()]
            if "masked" in name:
                # Only the masked row: the others are of no use and large.
                vocabulary = model.config.vocab_size
                mask = encoding.ids.index(4)
                result["logits"] = result["logits"][mask * vocabulary:(mask + 1) * vocabulary]
            results.append(result)
        (path / "reference.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")


main(sys.argv[1])
