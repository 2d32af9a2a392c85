"""The prompt files of public benchmarks, and how their public scorers want the pictures laid out."""

import json
from collections import defaultdict
from random import Random
from typing import Any, NamedTuple

from lit_transfusion.errors import InputError
from lit_transfusion.text_reader import is_encodable, read_text, split_lines

CAPTIONS = "captions.jsonl"  # beside the pictures of COCO
PICTURES_OF_GENEVAL = 4  # of each prompt
PICTURES_OF_COCO = 30_000  # on which the FID of text-to-image models is reported, the paper's too


class Order(NamedTuple):
    """A picture to draw."""

    prompt: str
    path: str  # within the folder of the benchmark


class Benchmark(NamedTuple):
    """What a benchmark wants in its folder."""

    orders: list[Order]
    texts: dict[str, str]  # files beside the pictures, by path

    @property
    def is_of_captions(self) -> bool:
        """Whether the prompts are captions of data, which are cut as in training; else each is drawn whole."""
        return CAPTIONS in self.texts


def read_benchmark(path: str, num_samples: int | None, seed: int) -> Benchmark:
    """What to draw for a file of prompts, which is known by its content.

    GenEval's evaluation_metadata.jsonl has {"tag": …, "include": […], "prompt": …} a line. The pictures of line 7 are
    00006/samples/00000.png, 00001.png, …, beside 00006/metadata.jsonl with the line itself.

    COCO's captions have {"annotations": [{"image_id": …, "id": …, "caption": …}, …]}. Each picture is of one caption of
    another image, and is pictures/<image_id>.png; captions.jsonl says for each its file, ids and caption.

    Args:
        path: The file.
        num_samples: Pictures of each prompt of GenEval (None: 4), or of COCO in all (None: 30,000, or one of each
            image if there are fewer).
        seed: Which captions of COCO.
    """
    if num_samples is not None and num_samples < 1:
        raise InputError(f"num_samples {num_samples} is less than 1")
    text = read_text(path, f"prompts {path}")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:  # several lines of it, perhaps
        whole = None
    if isinstance(whole, dict) and "annotations" in whole:
        return coco(whole["annotations"], num_samples, seed, f"prompts {path}")
    return geneval(text, num_samples, f"prompts {path}")


def geneval(text: str, num_samples: int | None, place: str) -> Benchmark:
    orders, texts = [], {}
    lines = [(number, line) for number, line in enumerate(split_lines(text), 1) if line.strip()]
    for index, (number, line) in enumerate(lines):
        prompt = prompt_of(line)
        if prompt is None and index == 0:
            raise InputError(
                f'{place} is neither metadata of GenEval, {{"tag": ..., "include": ..., "prompt": ...}} a line, nor '
                'captions of COCO, {"annotations": [{"image_id": ..., "id": ..., "caption": ...}, ...]}'
            )
        if prompt is None:
            raise InputError(f'{place}, line {number} is not of the form {{"tag": ..., "include": ..., "prompt": ...}}')
        texts[f"{index:05d}/metadata.jsonl"] = line.strip() + "\n"
        for i in range(num_samples or PICTURES_OF_GENEVAL):
            orders.append(Order(prompt, f"{index:05d}/samples/{i:05d}.png"))
    if not orders:
        raise InputError(f"{place} holds no prompt")
    return Benchmark(orders, texts)


def prompt_of(line: str) -> str | None:
    """The prompt in a line of GenEval's metadata, if it is one."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    match entry:
        case {"tag": str(), "include": list(), "prompt": str(prompt)} if is_encodable(prompt):
            return prompt
    return None


def coco(annotations: Any, num_samples: int | None, seed: int, place: str) -> Benchmark:
    of_image = defaultdict(list)
    for number, annotation in enumerate(annotations if isinstance(annotations, list) else [annotations]):
        match annotation:
            case {"image_id": int(image), "id": int(identity), "caption": str(caption)} if is_encodable(caption):
                of_image[image].append((identity, " ".join(caption.split())))  # some end in a line break
            case _:
                raise InputError(
                    f'{place}: annotation {number} is not of the form {{"image_id": 1, "id": 2, "caption": "..."}}'
                )
    wanted = num_samples or min(PICTURES_OF_COCO, len(of_image))
    if not 1 <= wanted <= len(of_image):
        raise InputError(
            f"{place} has captions of {len(of_image)} images, and each is drawn once at most; num_samples is {wanted}"
        )
    random, orders, lines = Random(seed), [], []
    for image in random.sample(sorted(of_image), len(of_image))[:wanted]:  # fewer are the first of more
        identity, caption = random.choice(sorted(of_image[image]))
        file = f"{image:012d}.png"
        orders.append(Order(caption, f"pictures/{file}"))
        entry = {"file": file, "image_id": image, "id": identity, "caption": caption}
        lines.append(json.dumps(entry, ensure_ascii=False))
    return Benchmark(orders, {CAPTIONS: "\n".join(lines) + "\n"})
