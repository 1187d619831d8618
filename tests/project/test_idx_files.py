"""Damaged, tampered and mistaken IDX files: each is an error that names the file, and nothing else is raised."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib.util
import os
import struct
import threading

import numpy as np
import pytest

from helpers.paths import EXAMPLES

SPEC = importlib.util.spec_from_file_location("_data", EXAMPLES / "_data.py")
assert SPEC is not None and SPEC.loader is not None
_data = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(_data)

RETRIEVE = _data.pooch.retrieve

IMAGES, LABELS, TEST_IMAGES = "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
SHAPES = {IMAGES: (4, 3, 3), LABELS: (4,), TEST_IMAGES: (2, 3, 3), TEST_LABELS: (2,)}


def idx(shape, values=None, kind=8, magic=0):
    header = struct.pack(">HBB", magic, kind, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    return header + (bytes(int(np.prod(shape))) if values is None else values)


def zipped(content):
    return gzip.compress(content, mtime=0)


WHOLE, PACKED = idx((4, 3, 3)), zipped(idx((4, 3, 3)))
FLIPPED = PACKED[:-6] + bytes([PACKED[-6] ^ 255]) + PACKED[-5:]  # of the checksum

# What the file holds, its name, whether it is gzipped.
DAMAGED = {
    "empty": (IMAGES, b"", False),
    "a byte": (IMAGES, b"\0", False),
    "half a header": (IMAGES, WHOLE[:3], False),
    "sizes cut": (IMAGES, WHOLE[:9], False),
    "header alone": (IMAGES, WHOLE[:16], False),
    "one value short": (IMAGES, WHOLE[:-1], False),
    "one value more": (IMAGES, WHOLE + b"\0", False),
    "two files in one": (IMAGES, WHOLE + WHOLE, False),
    "a web page": (IMAGES, b"<!DOCTYPE html><html>404 Not Found</html>", False),
    "magic number": (IMAGES, idx((4, 3, 3), magic=0x1234), False),
    "little-endian": (IMAGES, struct.pack("<HBB3I", 0, 8, 3, 4, 3, 3) + bytes(36), False),
    "signed bytes": (IMAGES, idx((4, 3, 3), kind=9), False),
    "floats": (IMAGES, idx((4, 3, 3), bytes(4 * 36), kind=13), False),
    "no axis": (IMAGES, struct.pack(">HBB", 0, 8, 0) + b"a", False),
    "255 axes": (IMAGES, struct.pack(">HBB", 0, 8, 255) + bytes(4 * 255), False),
    "two axes": (IMAGES, idx((4, 9)), False),
    "four axes": (IMAGES, idx((4, 3, 3, 1)), False),
    "no image": (IMAGES, idx((0, 3, 3)), False),
    "no pixel": (IMAGES, idx((4, 0, 3)), False),
    "sizes that overflow": (IMAGES, struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(36), False),
    "images that are not square": (IMAGES, idx((4, 1, 9)), False),
    "test images of another size": (TEST_IMAGES, idx((2, 4, 4)), False),
    "images in the place of labels": (LABELS, WHOLE, False),
    "labels in the place of images": (IMAGES, idx((4,)), False),
    "a label of 10": (LABELS, idx((4,), bytes([0, 1, 10, 2])), False),
    "labels of 200": (TEST_LABELS, idx((2,), bytes([200] * 2)), False),
    "a label too few": (LABELS, idx((3,)), False),
    "a label too many": (TEST_LABELS, idx((3,)), False),
    "no gzip": (IMAGES, WHOLE, True),
    "gzip, cut": (IMAGES, PACKED[:-9], True),
    "gzip, header alone": (IMAGES, PACKED[:10], True),
    "gzip, a broken body": (IMAGES, PACKED[:12] + b"\xff\xff\xff" + PACKED[15:], True),
    "gzip, a wrong checksum": (IMAGES, FLIPPED, True),
    "gzip, text after it": (IMAGES, PACKED + b"tail", True),
    "gzip in gzip": (IMAGES, zipped(PACKED), True),
    "gzip, not called so": (IMAGES, PACKED, False),
    "gzip, nothing in it": (LABELS, zipped(b""), True),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def retrieve(*args, **keywords):
        raise AssertionError("a file that is there is not downloaded")

    monkeypatch.setattr(_data.pooch, "retrieve", retrieve)


def write(folder, file=None, content=b"", packed=False):
    (folder / "mnist").mkdir()
    for name, shape in SHAPES.items():
        path = folder / "mnist" / (f"{name}.gz" if name == file and packed else name)
        path.write_bytes(content if name == file else idx(shape))
    return folder


def test_files_that_are_whole(tmp_path):
    data = _data.load("mnist", write(tmp_path, IMAGES, PACKED, True))
    assert data.x_train.shape == (4, 9) and data.y_test.shape == (2,)


def test_there_are_many_kinds():
    assert len(DAMAGED) >= 30


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_named(tmp_path, kind):
    file, content, packed = DAMAGED[kind]
    with pytest.raises(SystemExit, match=r": expected .*, got ") as stopped:
        _data.load("mnist", write(tmp_path, file, content, packed))
    named = TEST_IMAGES if kind == "images that are not square" else file  # the two kinds of images are compared
    assert named in str(stopped.value) or file in str(stopped.value)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    write(tmp_path)
    (tmp_path / "mnist" / LABELS).unlink()
    (tmp_path / "mnist" / LABELS).mkdir()
    with pytest.raises(SystemExit, match=f"{LABELS}: expected an IDX file, got one that cannot be read"):
        _data.load("mnist", tmp_path)


def test_a_small_file_that_unpacks_to_very_much_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(_data, "_LARGEST", 1000)
    huge = zipped(idx((1_000_000, 3, 3)))
    assert len(huge) < 10_000
    seen = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: seen.append(size) or read(self, size))
    with pytest.raises(SystemExit, match=f"{IMAGES}.gz: expected an IDX file.* 1000 bytes or more"):
        _data.load("mnist", write(tmp_path, IMAGES, huge, True))
    assert seen == [1001]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_the_published_size_is_the_published_one(tmp_path, monkeypatch, packed):
    content = idx((4, 3, 3), bytes(range(36)))
    monkeypatch.setattr(_data, "_PUBLISHED", (len(content), 0, 0, 0))
    monkeypatch.setitem(_data._SHA256, f"mnist/{IMAGES}", hashlib.sha256(content).hexdigest())
    given = zipped(content) if packed else content
    assert _data.load("mnist", write(tmp_path, IMAGES, given, packed)).x_train[0, 1] == 1 / 255
    spoilt = bytearray(content)
    spoilt[20] ^= 1
    path = tmp_path / "mnist" / (f"{IMAGES}.gz" if packed else IMAGES)
    path.write_bytes(zipped(bytes(spoilt)) if packed else bytes(spoilt))
    with pytest.raises(SystemExit, match=f"{IMAGES}.*: expected the published file of mnist, got another one of the"):
        _data.load("mnist", tmp_path)


def test_hashes_are_those_of_sha_256_and_all_different():
    expected = {f"{name}/{file}{end}" for name in _data._SOURCES for file in _data._FILES for end in ("", ".gz")}
    assert set(_data._SHA256) == expected and len(set(_data._SHA256.values())) == 16
    assert all(len(known) == 64 and int(known, 16) for known in _data._SHA256.values())
    assert all(url.startswith("https://") for url in _data._SOURCES.values())


@pytest.mark.parametrize("name", ["MNIST", "cifar", ""])
def test_unknown_data_sets_are_named(name, tmp_path):
    with pytest.raises(SystemExit, match=f"expected one of .*'fashion-mnist'.*, got {name!r}"):
        _data.load(name, tmp_path)


def test_a_pipe_in_the_place_of_a_file_does_not_wait(tmp_path):
    write(tmp_path)
    (tmp_path / "mnist" / LABELS).unlink()
    os.mkfifo(tmp_path / "mnist" / LABELS)
    with pytest.raises(SystemExit, match=f"{LABELS}: expected an IDX file, got one that cannot be read .a folder, "):
        _data.load("mnist", tmp_path)


def test_a_folder_that_cannot_be_looked_into(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="mnist: expected a folder that can be read, got 'xxx.*too long"):
        _data.load("mnist", "x" * 5000)

    def exists(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_data.Path, "exists", exists)
    with pytest.raises(SystemExit, match="mnist: expected a folder that can be read, got .*Permission denied"):
        _data.load("mnist", tmp_path)


@pytest.mark.parametrize("kind", ["as published", "another file", "cut"])
def test_what_is_downloaded_is_the_file_or_nothing(kind, tmp_path, monkeypatch):
    """From a server of this test, by the library that the examples download with."""
    files = {name: zipped(idx(shape)) for name, shape in SHAPES.items()}

    class Server(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            content = files[self.path.strip("/").removesuffix(".gz")]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) + 9 * (kind == "cut")))
            self.end_headers()
            self.wfile.write(zipped(content) if kind == "another file" else content)

    monkeypatch.setattr(_data.pooch, "retrieve", RETRIEVE)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name, content in files.items():
        monkeypatch.setitem(_data._SHA256, f"mnist/{name}.gz", hashlib.sha256(content).hexdigest())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        monkeypatch.setitem(_data._SOURCES, "mnist", f"http://127.0.0.1:{server.server_port}/")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            if kind == "as published":
                assert _data.load("mnist", tmp_path).x_train.shape == (4, 9)
            else:
                problem = "SHA256" if kind == "another file" else "Incomplete|broken"
                with pytest.raises(SystemExit, match=f"{IMAGES}.* could not download it .*({problem})"):
                    _data.load("mnist", tmp_path)
        finally:
            server.shutdown()
    left = sorted(path.name for path in tmp_path.rglob("*.*") if path.is_file())
    assert left == (sorted(f"{name}.gz" for name in SHAPES) if kind == "as published" else [])
