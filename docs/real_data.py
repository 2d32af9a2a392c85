"""Write real data in common formats: OpenMoji's drawings as WebDataset tars, WordNet's entries as a parquet file.

    pip install -e ".[openmoji]" && apt install wordnet-base
    python docs/real_data.py DIR

writes DIR/tars/openmoji-000.tar, … (PNG of 256 x 256, with one caption per line) and DIR/text/wordnet.parquet, with one
row for each of WordNet's 117,659 entries: its words, their meaning, and examples.
"""

import io
import sys
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
from rich.progress import track

from lit_transfusion.data.sources import OpenMoji
from lit_transfusion.generation.pictures import to_pil

DRAWINGS_OF_A_TAR = 500
WORDNET = Path("/usr/share/wordnet")


def write_tars(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source = OpenMoji(image_size=256, flags=True)  # no variants of skin tone, which would be on both sides of the split
    names = ["-".join(f"{ord(part):x}" for part in emoji) for emoji in source.emoji()]
    for start in track(range(0, len(source), DRAWINGS_OF_A_TAR), "tars"):
        with tarfile.open(folder / f"openmoji-{start // DRAWINGS_OF_A_TAR:03d}.tar", "w") as tar:
            for index in range(start, min(start + DRAWINGS_OF_A_TAR, len(source))):
                example = source[index]
                picture = io.BytesIO()
                to_pil(example.image).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("txt", "\n".join(example.captions).encode())):
                    member = tarfile.TarInfo(f"{names[index]}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_parquet(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [
        entry(line)
        for part in ("noun", "verb", "adj", "adv")
        for line in (WORDNET / f"data.{part}").read_text().splitlines()
        if not line.startswith("  ")  # the licence
    ]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    print(f"{path}: {len(texts)} texts, {sum(map(len, texts)) / 1e6:.1f} MB")


def entry(line: str) -> str:
    """`00001740 03 n 01 entity 0 003 ~ … | that which is perceived` → `entity: that which is perceived`"""
    fields, _, meaning = line.partition(" | ")
    _, _, _, count, *rest = fields.split()
    words = [word.replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]]
    return f"{', '.join(words)}: {meaning.strip()}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not WORDNET.is_dir():
        sys.exit(f"{WORDNET} does not exist; install it with: apt install wordnet-base")
    write_tars(folder / "tars")
    write_parquet(folder / "text" / "wordnet.parquet")
