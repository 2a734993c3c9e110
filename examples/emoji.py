"""Sort emoji into a folder per category: a small set of 64x64 images with transparency.

    npm pack emoji-datasource-twitter && tar xzf emoji-datasource-twitter-*.tgz
    python examples/emoji.py package data/emoji
    biflow data check data/emoji --out contact.png      # prints a command that trains on it

The images are Twemoji, by Twitter and other contributors, under CC-BY 4.0.
"""

import argparse
import json
import shutil
from pathlib import Path

IMAGES = Path("img/twitter/64")
LEFT_OUT = {"Component"}  # skin tones alone


def main(arguments: list[str] | None = None) -> None:
    """Copy the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("out", type=Path, help="a new folder")
    options = parser.parse_args(arguments)
    emoji = json.loads((options.package / "emoji.json").read_text(encoding="utf-8"))
    chosen = [each for each in emoji if each["has_img_twitter"] and each["category"] not in LEFT_OUT]
    for each in chosen:
        home = options.out / each["category"].lower().replace(" & ", "-and-")
        home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(options.package / IMAGES / each["image"], home / f"{each['short_name']}.png")
    print(f"{len(chosen):,} images in {options.out}")


if __name__ == "__main__":
    main()
