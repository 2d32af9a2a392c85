"""Template for the README.md of an exported model. Its author completes what only the author knows."""

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
| pictures | {{ picture_size }}, {{ patches_per_image }} patches |
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

`config.json` describes the parts of the net, `model.safetensors` contains its weights and `tokenizer.model` (or
`tokenizer.json`) its text tokenizer. If there is a folder `codec`, it contains the frozen autoencoder, which has its
own licence.

Not described yet: its training data, what it can and cannot do, and its licence.
"""
