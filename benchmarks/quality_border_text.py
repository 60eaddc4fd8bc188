"""From which height on is text at the border of an X-ray flagged?

    python benchmarks/quality_border_text.py --data ../shared/data

Words are written in white, in Pillow's own font, into the upper left corner of chest X-rays of 224 x 224 pixels that are resized
to a side of so many pixels first. Height: of the capital letters, in pixels. AP has fewer characters than the flag asks for.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medssl.readers.quality_flags import flags, seen_text_height

SIDES = (224, 512, 1000, 2048)
WORDS = ("PORTABLE", "KIM 1234", "AP")


def font_of(height: int, word: str) -> tuple[ImageFont.FreeTypeFont, tuple[int, int]]:
    """Return the smallest font in which the word is at least so high, and where to draw it."""
    for size in np.arange(3, 200, 0.5):
        font = ImageFont.load_default(size)
        left, top, _, bottom = font.getbbox(word)
        if bottom - top >= height:
            return font, (8 - left, 8 - top)
    raise ValueError(height)


def share(images: list[np.ndarray], word: str, height: int) -> float:
    font, place = font_of(height, word)
    found = 0
    for x in images:
        image = Image.fromarray(x)
        ImageDraw.Draw(image).text(place, word, fill=255, font=font)
        found += "text in border" in flags(np.asarray(image)[None], 0, 255, "DX")
    return found / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=40)
    options = parser.parse_args()
    files = sorted((options.data / "cxr_nih" / "images").iterdir())
    xrays = [Image.open(f).convert("L") for f in files[:: len(files) // options.images][: options.images]]
    print(f"{len(xrays)} X-rays; share flagged by height of the letters in pixels\n")
    for side in SIDES:
        images = [np.asarray(x.resize((side, side))) for x in xrays]
        step = seen_text_height((1, side, side)) // 6
        heights = [h * step for h in (4, 5, 6, 7, 8, 12)]
        print(f"| {side} pixels | " + " | ".join(map(str, heights)) + " |\n| --- |" + " --- |" * len(heights))
        for word in WORDS:
            print(f"| {word} | " + " | ".join(f"{share(images, word, h):.2f}" for h in heights) + " |")
        print()


if __name__ == "__main__":
    main()
