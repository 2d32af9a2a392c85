"""List and bool options on the command line."""

import pytest

from lit_transfusion.cli import tool_of, tool_parser
from lit_transfusion.commands.evaluate import evaluate
from lit_transfusion.config.argv import spell_out


@pytest.mark.parametrize(
    ("words", "spelled"),
    [
        (["--metrics", "KID", "FID"], ["--metrics=[KID, FID]"]),
        (["--metrics=KID", "FID", "--seed", "3"], ["--seed", "3", "--metrics=[KID, FID]"]),
        (["--metrics", "KID", "--metrics", "FID"], ["--metrics=[KID, FID]"]),
        (["--metrics", "[KID,FID]"], ["--metrics=[KID,FID]"]),
        (["--guidance_scale", "1,1.5", "3"], ["--guidance_scale=[1,1.5, 3]"]),
        (["--ema", "--seed", "3"], ["--ema=true", "--seed", "3"]),
        (["--ema", "false"], ["--ema", "false"]),
        (["--seed", "3", "--ema"], ["--seed", "3", "--ema=true"]),
    ],
)
def test_lists_and_switches_are_normalised(words, spelled):
    assert spell_out(evaluate, words) == spelled


def test_lists_of_text_keep_punctuation():
    words = spell_out(tool_of("ablate"), ["--arms", "a, b", 'c "d"', "[e]", "--override=--x.y", "3"])
    assert words == ['--arms=["a, b", "c \\"d\\"", "[e]"]', '--override=["--x.y", "3"]']
    words = spell_out(tool_of("generate"), ["--prompt", "a circle, red"])
    assert [word for word in words if "circle" in word] and "a circle, red" in " ".join(words)


def test_lists_of_text_keep_any_character():
    prompt = "a\tKäfer 🗻 \\n \u2028 \"'%"
    words = spell_out(tool_of("generate"), ["--ckpt", "c", "--prompt", prompt])
    assert tool_parser("generate").parse_args(words).prompt == [prompt]


def test_plus_adds_to_a_list():
    words = spell_out(tool_of("prepare"), ["--input", "a", "--output", "o", "--input+", "b, c", "d"])
    assert words == ["--output", "o", '--input=["a"]', '--input+=["b, c", "d"]']
    assert tool_parser("prepare").parse_args(words).input == ["a", "b, c", "d"]
