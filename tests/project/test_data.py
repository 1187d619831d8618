"""examples/_data.py: IDX files raw and gzipped, in both folder layouts, and what it says where they are missing."""

from __future__ import annotations

import gzip
import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.paths import EXAMPLES

SPEC = importlib.util.spec_from_file_location("_data", EXAMPLES / "_data.py")
assert SPEC is not None and SPEC.loader is not None
_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(_data)

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TRAIN = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2) * 20  # 0, 20, ..., 220
TEST = np.array([[[255, 0], [1, 128]]], dtype=np.uint8)
ARRAYS = (TRAIN, np.array([7, 0, 9], dtype=np.uint8), TEST, np.array([3], dtype=np.uint8))


def idx(array, kind=8):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def write(folder, *, gzipped=False, **replaced):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(FILES, ARRAYS, strict=True):
        content = replaced.get(name.partition("-idx")[0].replace("-", "_"), idx(array))
        (folder / (name + ".gz" * gzipped)).write_bytes(gzip.compress(content) if gzipped else content)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any download fails; the calls are in the list that the fixture gives."""
    calls = []

    def retrieve(url, known_hash, **keywords):
        calls.append((url, known_hash, keywords))
        raise OSError("no route to host")

    monkeypatch.setattr(_data.pooch, "retrieve", retrieve)
    return calls


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("gzipped", [False, True], ids=["raw", "gzipped"])
@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_reads_idx_files(tmp_path, name, gzipped, nested, no_network):
    write(tmp_path / name if nested else tmp_path, gzipped=gzipped)
    data = _data.load(name, str(tmp_path))
    assert torch.equal(data.x_train, torch.arange(12.0).reshape(3, 4) * 20 / 255)
    assert torch.equal(data.x_test, torch.tensor([[255.0, 0.0, 1.0, 128.0]]) / 255)
    assert torch.equal(data.y_train, torch.tensor([7, 0, 9])) and torch.equal(data.y_test, torch.tensor([3]))
    assert data.x_train.dtype == torch.float32 and data.y_train.dtype == torch.int64
    assert data.side == 2
    assert not no_network, "files that are there are not downloaded"


def test_the_folder_of_the_data_set_comes_first(tmp_path):
    """Files of mnist beside those of fashion-mnist, in one --data-dir."""
    write(tmp_path)
    write(tmp_path / "fashion-mnist", t10k_labels=idx(np.array([5], dtype=np.uint8)))
    assert _data.load("fashion-mnist", tmp_path).y_test.item() == 5
    assert _data.load("mnist", tmp_path).y_test.item() == 3


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_neither_file_nor_network(tmp_path, name, no_network):
    with pytest.raises(SystemExit) as stopped:
        _data.load(name, tmp_path)
    text = str(stopped.value)
    folder = tmp_path / name
    assert f"{name}: expected {FILES[0]} or {FILES[0]}.gz in {folder}" in text
    assert "could not download it (OSError: " in text and "--data-dir" in text
    ((url, known_hash, keywords),) = no_network
    assert (
        url.startswith("https://")
        and url.endswith(f"{FILES[0]}.gz")
        and known_hash.startswith("sha256:")
        and len(known_hash) == 71
    )
    assert Path(keywords["path"]) == folder


def test_one_file_missing(tmp_path):
    write(tmp_path)
    (tmp_path / FILES[3]).unlink()
    with pytest.raises(SystemExit, match=f"expected {FILES[3]} or {FILES[3]}.gz"):
        _data.load("mnist", tmp_path)


def test_downloads_what_is_missing_with_a_hash_of_its_own_for_each_file(tmp_path, monkeypatch):
    hashes = []

    def retrieve(url, known_hash, fname, path, **keywords):
        hashes.append(known_hash)
        write(Path(path), gzipped=True)
        for other in FILES:  # the one that was asked for, alone
            if f"{other}.gz" != fname:
                (Path(path) / f"{other}.gz").unlink()
        (Path(path) / fname).rename(Path(path) / f"fetched-{fname}")
        return str(Path(path) / f"fetched-{fname}")

    monkeypatch.setattr(_data.pooch, "retrieve", retrieve)
    for name in ("mnist", "fashion-mnist"):
        data = _data.load(name, tmp_path)
        assert torch.equal(data.y_train, torch.tensor([7, 0, 9])) and data.x_test.shape == (1, 4)
    assert len(set(hashes)) == 8 and all(len(known) == len("sha256:") + 64 for known in hashes)


@pytest.mark.parametrize("content, text", [
    (idx(TRAIN)[:-1], r"expected an IDX file of \(3, 2, 2\) unsigned bytes, got 11 of type 8"),
    (idx(TRAIN) + b"\0", "got 13 of type 8"),
    (idx(TRAIN, kind=13), "got 12 of type 13"),
    (b"<html>not found</html>", "expected an IDX file"),
    (b"", "expected an IDX file"),
], ids=["short", "long", "type", "web page", "empty"])  # fmt: skip
def test_malformed_file(tmp_path, content, text):
    write(tmp_path, train_images=content)
    with pytest.raises(SystemExit, match=text) as stopped:
        _data.load("mnist", tmp_path)
    assert FILES[0] in str(stopped.value)


def test_a_gz_file_that_is_not_gzipped(tmp_path):
    write(tmp_path, gzipped=True)
    (tmp_path / f"{FILES[0]}.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(SystemExit, match="expected an IDX file"):
        _data.load("mnist", tmp_path)


def test_images_and_labels_of_different_number(tmp_path):
    write(tmp_path, train_labels=idx(np.array([1, 2], dtype=np.uint8)))
    with pytest.raises(SystemExit, match="expected as many labels as images, 3, got 2"):
        _data.load("mnist", tmp_path)


def test_digits_need_no_file(tmp_path, no_network):
    data = _data.load("digits", tmp_path / "nowhere")
    assert len(data.x_train) + len(data.x_test) == 1797 and data.side == 8
    assert data.x_train.min() == 0 and data.x_train.max() == 1
    assert sorted(data.y_test.unique().tolist()) == list(range(10))
    assert not no_network and not (tmp_path / "nowhere").exists()
    assert torch.equal(data.to("cpu").x_train, data.x_train)


def test_validation_data_are_taken_out_of_the_training_data():
    x, y = torch.arange(20.0)[:, None], torch.arange(20)
    data = _data.Data(x, y, -x, y).with_validation(seed=0, share=0.25)
    assert (len(data.x_train), len(data.x_test)) == (15, 5)
    assert sorted(torch.cat([data.y_train, data.y_test]).tolist()) == list(range(20)), "each example in one of both"
    assert torch.equal(data.x_train[:, 0], data.y_train.float()) and torch.equal(data.x_test[:, 0], data.y_test.float())
