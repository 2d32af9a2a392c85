"""The README.md of an exported model. What only its author knows is left to the author."""

TEMPLATE = """\
---
{{ card_data }}
---

# A Transfusion model

One Transformer that writes text and draws images, after [Transfusion](https://arxiv.org/abs/2408.11039) (Zhou et al.,
2024). Exported by lit_transfusion {{ version }}.

| | |
|---|---|
| parameters | {{ parameters }} |
| Transformer | dim {{ size.dim }}, {{ size.n_layers }} layers, {{ size.n_heads }} heads |
| pictures | {{ image_size }} × {{ image_size }} pixels, {{ patches_per_image }} patches |
| vocabulary | {{ vocab_size }} |
| patcher | {{ patcher }} |
| mask | {{ mask }} |
| noise | {{ noise }} |
| codec | {{ codec }} |

```python
{% for module in modules %}import {{ module }}
{% endfor %}from lit_transfusion import Pipeline

pipeline = Pipeline.from_pretrained("MODEL")  # this folder, or its name on the hub
[picture] = pipeline.generate("what to draw", images="forced")
```

```bash
python -m lit_transfusion generate --ckpt MODEL --prompt "what to draw"{{ options }}
```

`config.json` says what the net is made of, `model.safetensors` holds its weights and `tokenizer.model` its text
tokenizer. If there is a folder `codec`, it holds the frozen autoencoder, which has a licence of its own.

What it was trained on, what it can and cannot do, and its licence: not yet said.
"""
