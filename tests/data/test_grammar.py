"""Only the grammar makes documents, and each form has the tokens and the learned positions that its table states."""

import ast
from pathlib import Path

import pytest
import torch

import lit_transfusion
from lit_transfusion.data import grammar
from lit_transfusion.data.packing import flatten
from lit_transfusion.data.types import IGNORE_INDEX, ImageSegment

ROOT = Path(lit_transfusion.__file__).parent
IMAGE = torch.zeros(3, 4, 4)
GIVEN = ImageSegment(IMAGE, learn=False)
CAPTION = 30, 31


def test_only_the_grammar_makes_documents():
    makers = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Document"
    }
    assert makers == {"data/grammar.py"}


@pytest.mark.parametrize(
    ("form", "tokens", "learned"),
    [
        (lambda t: grammar.text_documents(CAPTION, t, 9)[0], "1 30 31 2", "30 31 2"),
        (lambda t: grammar.caption_first(CAPTION, IMAGE, t), "1 30 31 [ . ] 2", "30 31 [ 2"),
        (lambda t: grammar.caption_first(CAPTION, IMAGE, t, cut=True), "1 30 31 [ . ] 2", "30 31 2"),
        (lambda t: grammar.image_first(CAPTION, IMAGE, t), "1 [ . ] 30 31 2", "[ 30 31 2"),
        (lambda t: grammar.image_first(CAPTION, IMAGE, t, cut=True), "1 [ . ] 30 31", "[ 30 31"),
        (lambda t: grammar.unconditional(IMAGE, t), "1 [ . ] 2", ""),
        (lambda t: grammar.unconditional(IMAGE, t, [GIVEN]), "1 [ . ] [ . ] 2", ""),
        (lambda t: grammar.edit(GIVEN, CAPTION, IMAGE, t), "1 [ . ] 30 31 [ . ] 2", "[ 2"),
        (lambda t: grammar.edit(GIVEN, CAPTION, IMAGE, t, True), "1 [ . ] 30 31 [ . ] 2", "30 31 [ 2"),
        (lambda t: grammar.edit(GIVEN, CAPTION, IMAGE, t, cut=True), "1 [ . ] 30 31 [ . ] 2", "2"),
        (lambda t: grammar.prompt([(30,), (31,), GIVEN, (), (32,)], t), "1 30 31 [ . ] 32", "30 31 [ 32"),
        (lambda t: grammar.null_prompt(t, [GIVEN], (9,)), "1 [ . ] 9", ""),
        (lambda t: grammar.continuation([GIVEN, (30,)], (31,), t), "1 [ . ] 30 31", "31"),
    ],
)
def test_forms(tokenizer, form, tokens, learned):
    flat = flatten(form(tokenizer), tokenizer, lambda image: 1)
    words = {tokenizer.boi: "[", tokenizer.eoi: "]"}
    pairs = zip(flat.tokens, flat.image_ids, strict=True)
    assert " ".join("." if image >= 0 else words.get(token, str(token)) for token, image in pairs) == tokens
    assert " ".join(words.get(label, str(label)) for label in flat.labels if label != IGNORE_INDEX) == learned
