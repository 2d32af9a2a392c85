"""Read the prompt files of public benchmarks, and lay out the pictures as their public scorers expect."""

import json
from collections import defaultdict
from random import Random
from typing import Any, NamedTuple

from lit_transfusion.errors import InputError, check_at_least
from lit_transfusion.text_reader import is_encodable, read_text, split_lines

CAPTIONS = "captions.jsonl"  # list of the pictures for COCO
PICTURES_OF_GENEVAL = 4  # for each prompt
PICTURES_OF_COCO = 30_000  # papers on text-to-image models, and the Transfusion paper, report FID on this many


class Order(NamedTuple):
    """A picture to draw."""

    prompt: str
    path: str  # relative to the folder of the benchmark


class Benchmark(NamedTuple):
    """The pictures and the other files that a benchmark needs in its folder."""

    orders: list[Order]
    texts: dict[str, str]  # path → content of the other files

    @property
    def is_of_captions(self) -> bool:
        """Whether the prompts are captions of data, which are cut as in training. Other prompts are never cut."""
        return CAPTIONS in self.texts


def read_benchmark(path: str, num_samples: int | None, seed: int) -> Benchmark:
    """Read a file of prompts; its content determines the format.

    GenEval's evaluation_metadata.jsonl has {"tag": …, "include": […], "prompt": …} on each line. The pictures of line 7
    are 00006/samples/00000.png, 00001.png, …, and 00006/metadata.jsonl contains the line itself.

    COCO's captions have {"annotations": [{"image_id": …, "id": …, "caption": …}, …]}. Each picture is drawn for a
    caption of a different image, as pictures/<image_id>.png; captions.jsonl lists file, ids and caption of each.

    Args:
        path: The file.
        num_samples: Pictures for each prompt of GenEval (None: 4), or for COCO in total (None: 30,000, or one for each
            image if there are fewer).
        seed: Determines which captions of COCO are used.

    Raises:
        InputError: The file has another format, or too few captions for `num_samples`.
    """
    check_at_least("num_samples", 1 if num_samples is None else num_samples)
    text = read_text(path, f"prompts {path}")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:  # perhaps JSON lines
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
                f"{place} has an unknown format; use metadata of GenEval, "
                '{"tag": ..., "include": ..., "prompt": ...} on each line, or captions of COCO, '
                '{"annotations": [{"image_id": ..., "id": ..., "caption": ...}, ...]}'
            )
        if prompt is None:
            raise InputError(
                f"{place}, line {number} is invalid: it must have the form "
                '{"tag": ..., "include": ..., "prompt": ...}'
            )
        texts[f"{index:05d}/metadata.jsonl"] = line.strip() + "\n"
        for i in range(num_samples or PICTURES_OF_GENEVAL):
            orders.append(Order(prompt, f"{index:05d}/samples/{i:05d}.png"))
    if not orders:
        raise InputError(f"{place} contains no prompts; use a file with at least one")
    return Benchmark(orders, texts)


def prompt_of(line: str) -> str | None:
    """The prompt in a line of GenEval's metadata; None if the line is not in this format."""
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
                    f"{place}: annotation {number} is invalid: it must have the form "
                    '{"image_id": 1, "id": 2, "caption": "..."}'
                )
    wanted = num_samples or min(PICTURES_OF_COCO, len(of_image))
    if not 1 <= wanted <= len(of_image):
        raise InputError(
            f"num_samples {wanted} is invalid: {place} has captions of {len(of_image)} images, and each image is used "
            "at most once"
        )
    random, orders, lines = Random(seed), [], []
    for image in random.sample(sorted(of_image), len(of_image))[:wanted]:  # fewer pictures are the first of more
        identity, caption = random.choice(sorted(of_image[image]))
        file = f"{image:012d}.png"
        orders.append(Order(caption, f"pictures/{file}"))
        entry = {"file": file, "image_id": image, "id": identity, "caption": caption}
        lines.append(json.dumps(entry, ensure_ascii=False))
    return Benchmark(orders, {CAPTIONS: "\n".join(lines) + "\n"})
