"""Print the table of docs/language_model.md: parameters of a net that starts from a language model, and their bytes.

python docs/language_model.py            # SmolLM2-135M with the patcher of configs/lmfusion.yaml
python docs/language_model.py DIR        # a folder with the config.json of another model
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch

from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion
from lit_transfusion.model.llama import size_of
from lit_transfusion.training.text_rate import freeze_text

SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "rope_theta": 100_000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


def main() -> None:
    config = json.loads((Path(sys.argv[1]) / "config.json").read_text()) if sys.argv[1:] else SMOLLM2_135M
    size = TransformerConfig(**size_of(config))
    print("| `modality_weights` | `text_rate` | parameters | with gradients | training state |")
    print("|---|---|---|---|---|")
    for weights, text_rate in (("none", 1), ("ffn", 1), ("all", 1), ("all", 0)):
        with torch.device("meta"):
            patcher = LinearPatcher(3, size.dim, 8, positions=8)
            choice = dataclasses.replace(size, modality_weights=weights)
            net = Transfusion(config["vocab_size"] + 2, choice, patcher, Bidirectional())
        if text_rate == 0:
            freeze_text(net)
        total = sum(weight.numel() for weight in net.parameters())
        learned = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
        state = 4 * (2 * total + 3 * learned)  # float32: weights and average; gradients and two moments of Adam
        print(f"| `{weights}` | {text_rate} | {total / 1e6:.1f}M | {learned / 1e6:.1f}M | {state / 1e9:.2f} GB |")


if __name__ == "__main__":
    main()
