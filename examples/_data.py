"""Data for the examples: digits (in scikit-learn), MNIST and Fashion-MNIST (IDX files)."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import torch
from torch import Tensor

NAMES = ("digits", "mnist", "fashion-mnist")

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SOURCES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion-mnist": "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
}
# Of the gzipped files as published, and of what is in them, however it was compressed; as sha256sum writes it.
_LINES = [line.split() for line in Path(__file__).with_suffix(".sha256").read_text().splitlines()]
_SHA256 = {name: digest for digest, name in _LINES}
_PUBLISHED = (47_040_016, 60_008, 7_840_016, 10_008)  # bytes of content
_LARGEST = 64 * 2**20  # bytes of content that are read; a small file may unpack to any number
_CLASSES = 10


class Data(NamedTuple):
    """Images as rows of pixels in 0..1, labels as class numbers."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def side(self) -> int:
        """Height and width of an image in pixels."""
        return round(self.x_train.shape[1] ** 0.5)

    def standardized(self) -> Data:
        """Pixels with the mean and standard deviation of the training set taken out, one of each for all pixels."""
        mean, std = self.x_train.mean(), self.x_train.std()
        return self._replace(x_train=(self.x_train - mean) / std, x_test=(self.x_test - mean) / std)

    def with_validation(self, seed: int, share: float = 0.1) -> Data:
        """Test data replaced by a share of the training data, which is taken out of those."""
        order = torch.randperm(len(self.x_train), generator=torch.Generator().manual_seed(seed)).to(self.x_train.device)
        held, rest = order.split([round(share * len(order)), len(order) - round(share * len(order))])
        return Data(self.x_train[rest], self.y_train[rest], self.x_train[held], self.y_train[held])

    def to(self, device: str) -> Data:
        return Data(*(tensor.to(device) for tensor in self))


def load(name: str, data_dir: str | Path) -> Data:
    """Read a data set; download it into ``data_dir`` where its files are absent.

    Raises:
        SystemExit: no file and no network, saying where to put the files; a file that is not as it should be, by name;
            an unknown data set.
    """
    if name not in NAMES:
        raise SystemExit(f"data set: expected one of {NAMES}, got {name!r}")
    if name == "digits":
        return _digits()
    folder = Path(data_dir)
    paths = [_find(name, folder, i) for i in range(4)]
    train_x, train_y, test_x, test_y = (_idx(path, name, i) for i, path in enumerate(paths))
    for x, y, path in ((train_x, train_y, paths[1]), (test_x, test_y, paths[3])):
        if len(x) != len(y):
            raise SystemExit(f"{path}: expected as many labels as images, {len(x)}, got {len(y)}; check {folder}")
        if y.max() >= _CLASSES:
            raise SystemExit(f"{path}: expected labels of {_CLASSES} classes, 0 to 9, got {y.max()}; replace the file")
    if train_x.shape[1:] != test_x.shape[1:] or train_x.shape[1] != train_x.shape[2]:
        raise SystemExit(
            f"{paths[2]}: expected square images of the size of those in {paths[0].name}, {train_x.shape[1:]}, got "
            f"{test_x.shape[1:]}; replace the file"
        )
    images = [torch.from_numpy(a.reshape(len(a), -1)).float() / 255 for a in (train_x, test_x)]
    labels = [torch.from_numpy(a.astype(np.int64)) for a in (train_y, test_y)]
    return Data(images[0], labels[0], images[1], labels[1])


def _digits() -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=0.2, stratify=y, random_state=0)
    pixels = [torch.tensor(a, dtype=torch.float32) for a in (x_train, x_test)]
    return Data(pixels[0], torch.tensor(y_train), pixels[1], torch.tensor(y_test))


def _find(name: str, folder: Path, index: int) -> Path:
    file = _FILES[index]
    try:
        for candidate in (folder / name / file, folder / file):
            for path in (candidate, candidate.with_name(f"{file}.gz")):
                if path.exists():
                    return path
    except OSError as error:  # no permission to look, a name that is too long
        raise SystemExit(
            f"{name}: expected a folder that can be read, got {str(folder)[:200]!r} ({error.strerror})"
        ) from error
    known = f"sha256:{_SHA256[f'{name}/{file}.gz']}"
    try:
        fetched = pooch.retrieve(
            f"{_SOURCES[name]}{file}.gz", known, fname=f"{file}.gz", path=folder / name, progressbar=True
        )
    except Exception as error:
        raise SystemExit(
            f"{name}: expected {file} or {file}.gz in {folder / name}, found neither, and could not download it "
            f"({type(error).__name__}: {str(error)[:200]}); put the four IDX files of {name} there, or give "
            "--data-dir the folder they are in"
        ) from error
    return Path(fetched)


def _idx(path: Path, name: str, index: int) -> np.ndarray:
    """An IDX file of unsigned bytes: magic number, sizes, values (big-endian); of images three axes, of labels one."""
    axes = 1 if index % 2 else 3
    try:
        if not path.is_file():
            raise ValueError("a folder, a pipe or a device")
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = bytearray(file.read(_LARGEST + 1))  # a bytearray, since torch wants to write
        magic, kind, rank = struct.unpack_from(">HBB", content)
        if magic == 0 and rank != axes:
            raise ValueError(f"{rank} axes in place of {axes}")
        sizes = struct.unpack_from(f">{axes}I", content, 4)
        if magic != 0 or len(content) > _LARGEST or 0 in sizes:
            raise ValueError(f"magic number {magic}, sizes {sizes}, {min(len(content), _LARGEST)} bytes or more")
    except (struct.error, EOFError, OSError, ValueError, zlib.error) as error:
        raise SystemExit(f"{path}: expected an IDX file, got one that cannot be read ({error}); replace it") from error
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes)
    if kind != 8 or values.size != math.prod(sizes):
        raise SystemExit(f"{path}: expected an IDX file of {sizes} unsigned bytes, got {values.size} of type {kind}")
    known = _SHA256[f"{name}/{_FILES[index]}"]
    if len(content) == _PUBLISHED[index] and hashlib.sha256(content).hexdigest() != known:
        raise SystemExit(
            f"{path}: expected the published file of {name}, got another one of the same size; remove it, and it is "
            "downloaded"
        )
    return values.reshape(sizes)
