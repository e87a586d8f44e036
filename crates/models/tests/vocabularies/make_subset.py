"""Cuts a vocabulary down to what some texts can touch, beside the token ids that llama.cpp gives them.

    python make_subset.py VOCABULARY.gguf REFERENCE.json NAME [TEXT TO LEAVE OUT] > NAME.json

REFERENCE.json: {"strings": [...], "models": {NAME: {"results": [{"plain": [...], "plain_special": [...],
"bos_special": [...]}]}}}, the ids of llama_tokenize without and with parse_special and add_special.

Merging only ever looks up parts of the text. So a vocabulary without the tokens and merges that are no part
of any text gives the same tokens, which are numbered anew here in the order of their old ids.
A case is [text, plain, plain_special, bos_special], or [text, plain] where all three are the same.
"""

import json
import sys

from gguf import GGUFReader

ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "unknown": "unknown_token_id",
    "add_bos": "add_bos_token",
    "add_eos": "add_eos_token",
    "add_space_prefix": "add_space_prefix",
    "model": "model",
    "pre": "pre",
}


def byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def main(vocabulary, reference, name, left_out=None):
    fields = GGUFReader(vocabulary).fields

    def get(key):
        field = fields.get("tokenizer.ggml." + key)
        return field.contents() if field else None

    reference = json.load(open(reference, encoding="utf-8"))
    texts = reference["strings"]
    if get("model") == "gpt2":
        alphabet = byte_alphabet()
        written = ["".join(alphabet[byte] for byte in text.encode()) for text in texts]
    else:
        written = ["▁" + text.replace(" ", "▁") for text in texts]
    everything = "\0".join(texts + written)

    tokens = get("tokens")
    types = get("token_type") or [1] * len(tokens)
    scores = get("scores") if get("model") == "llama" else None
    roles = {role: get(key) for role, key in ROLES.items() if get(key) is not None}
    named = {value for role, value in roles.items() if role in ("bos", "eos", "eot", "unknown")}
    kept = [n for n, token in enumerate(tokens) if n in named or types[n] == 6 or token in everything]
    new = {old: n for n, old in enumerate(kept)}
    cases = []
    for text, result in zip(texts, reference["models"][name]["results"]):
        if text != left_out:
            ids = [[new[token] for token in result[key]] for key in ("plain", "plain_special", "bos_special")]
            cases.append([text, *(ids if ids[0] != ids[2] else ids[:1])])
    subset = {
        **{role: new[value] if role in ("bos", "eos", "eot", "unknown") else value for role, value in roles.items()},
        "tokens": [tokens[n] for n in kept],
        "types": [types[n] for n in kept],
        "scores": [scores[n] for n in kept] if scores else [],
        "merges": [merge for merge in get("merges") or [] if merge.replace(" ", "") in everything],
        "cases": cases,
    }
    # One line for each key: short, and still readable in a diff.
    lines = (json.dumps(key) + ":" + json.dumps(value, ensure_ascii=False, separators=(",", ":")) for key, value in subset.items())
    print("{" + ",\n".join(lines) + "}")


if __name__ == "__main__":
    main(*sys.argv[1:])
