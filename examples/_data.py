"""Data for the examples: digits (in scikit-learn), MNIST and Fashion-MNIST (IDX files)."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import torch
from torch import Tensor

NAMES = ("digits", "mnist", "fashion-mnist")

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_SOURCES = {  # where each is published, and the MD5 of its four gzipped files, in the order of _FILES
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
         "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
         "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
}  # fmt: skip


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

    def to(self, device: str) -> Data:
        return Data(*(tensor.to(device) for tensor in self))


def load(name: str, data_dir: str | Path) -> Data:
    """Read a data set; download it into ``data_dir`` where its files are absent.

    Raises:
        SystemExit: no file and no network, saying where to put the files.
    """
    if name == "digits":
        return _digits()
    folder = Path(data_dir)
    train_x, train_y, test_x, test_y = (_idx(_find(name, folder, i)) for i in range(4))
    for x, y in ((train_x, train_y), (test_x, test_y)):
        if len(x) != len(y):
            raise SystemExit(f"{name}: expected as many labels as images, {len(x)}, got {len(y)}; check {folder}")
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
    for candidate in (folder / name / file, folder / file):
        for path in (candidate, candidate.with_name(f"{file}.gz")):
            if path.exists():
                return path
    url, hashes = _SOURCES[name]
    try:
        fetched = pooch.retrieve(
            f"{url}{file}.gz", f"md5:{hashes[index]}", fname=f"{file}.gz", path=folder / name, progressbar=True
        )
    except Exception as error:
        raise SystemExit(
            f"{name}: expected {file} or {file}.gz in {folder / name}, found neither, and could not download it "
            f"({type(error).__name__}); put the four IDX files of {name} there, or give --data-dir the folder they "
            "are in"
        ) from error
    return Path(fetched)


def _idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: magic number, sizes, values (big-endian)."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            content = bytearray(file.read())  # a bytearray, since torch wants to write
        _, kind, rank = struct.unpack_from(">HBB", content)
        sizes = struct.unpack_from(f">{rank}I", content, 4)
    except (struct.error, EOFError, gzip.BadGzipFile) as error:
        raise SystemExit(f"{path}: expected an IDX file, got one that cannot be read ({error})") from error
    values = np.frombuffer(content, dtype=np.uint8, offset=min(4 + 4 * rank, len(content)))
    if kind != 8 or values.size != np.prod(sizes):
        raise SystemExit(f"{path}: expected an IDX file of {sizes} unsigned bytes, got {values.size} of type {kind}")
    return values.reshape(sizes)
