"""What is told of a GGUF file from its first bytes: whether it is one, and whether it is all there."""

from __future__ import annotations

import struct

import gguf
import numpy
import pytest
from ansible.module_utils import gguf as utils

EMPTY = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (EMPTY, ""),
        (struct.pack("<4sIQQ", b"GGUF", 2, 0, 0), ""),
        (b"", "it is empty (0 bytes)"),
        (EMPTY[:10], "its header is cut off after 10 bytes"),
        (
            struct.pack("<4sIQQ", b"GGUF", 1, 0, 0),
            "it has GGUF version 1; llama.cpp reads 2 and 3",
        ),
        (
            struct.pack(">4sIQQ", b"GGUF", 3, 0, 0),
            "it is a big-endian GGUF file; take the little-endian one",
        ),
        (
            b"\n<!DOCTYPE html>\n<html>Sign  in</html>",
            "it is an HTML or XML page: '<!DOCTYPE html> <html>Sign in</html>'",
        ),
        (b"<html>" + b"x" * 600, f"it is an HTML or XML page: '<html>{'x' * 54}'"),
        (b'{"error": "gone"}', 'it is JSON: \'{"error": "gone"}\''),
        (b"Entry not found", "it is text: 'Entry not found'"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "it is a git-lfs pointer, not the file itself (use the /resolve/ URL):"
            " 'version https://git-lfs.github.com/spec/v1 oid sha256:1'",
        ),
        (
            b"PK\x03\x04rest",
            "it does not begin with GGUF but with bytes 504b0304: 'PKrest'",
        ),
    ],
)
def test_what_is_no_gguf_file_is_recognised(tmp_path, content, problem):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    assert utils.header_problem(str(path)) == problem


def write(path, *tensors, alignment=None):
    """Writes a model by the real library; a tensor is an array; one of bytes is the blocks of a type."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_token_list([f"word{number}" for number in range(1000)])
    for number, tensor in enumerate(tensors):
        kind = gguf.GGMLQuantizationType.Q8_0 if tensor.dtype == numpy.uint8 else None
        writer.add_tensor(f"t{number}", tensor, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


FLOATS = numpy.ones((3, 5), numpy.float32)  # 60 bytes
QUANTS = numpy.ones((2, 34), numpy.uint8)  # 68 bytes: two rows of one block of Q8_0


@pytest.fixture(params=[None, 64, 4096], ids=["default", "64", "4096"])
def model(request, tmp_path):
    """A whole model, its length, and the length that it cannot do without."""
    path = tmp_path / "x.gguf"
    length = write(path, FLOATS, QUANTS, alignment=request.param)
    padding = -68 % (request.param or 32)
    return path, length, length - padding


def test_a_whole_file_has_the_right_length(model):
    path, *_lengths = model
    assert utils.length_problem(str(path), strict=True) == ""


def test_padding_behind_the_last_tensor_may_be_missing(model):
    path, _length, needed = model
    with path.open("r+b") as file:
        file.truncate(needed)
    assert utils.length_problem(str(path), strict=True) == ""


def test_one_byte_less_is_cut_off(model):
    path, _length, needed = model
    with path.open("r+b") as file:
        file.truncate(needed - 1)
    assert utils.length_problem(str(path)) == f"it is cut off: {needed - 1} of {needed} bytes"


def test_a_file_that_is_too_long_is_a_problem_where_nothing_else_vouches_for_it(model):
    path, length, _needed = model
    with path.open("ab") as file:
        file.write(b"x")
    assert utils.length_problem(str(path)) == ""
    assert utils.length_problem(str(path), strict=True) == (
        f"it is longer than its own table of tensors says: {length + 1} bytes, not {length}"
    )


def test_a_file_that_ends_in_its_header_says_so(tmp_path):
    path = tmp_path / "x.gguf"
    write(path, FLOATS)
    with path.open("r+b") as file:
        file.truncate(5000)
    assert utils.length_problem(str(path)) == "it ends after 5000 bytes, within its header"


def test_a_file_without_tensors_is_whole(tmp_path):
    path = tmp_path / "x.gguf"
    length = write(path)
    assert utils.length_problem(str(path), strict=True) == ""
    with path.open("r+b") as file:
        file.truncate(length + 32)
    assert "longer" in utils.length_problem(str(path), strict=True)


def with_type(path, kind):
    """Gives the last tensor of a file another type; its number stands before its offset."""
    data = bytearray(path.read_bytes())
    offset = struct.pack("<IQ", gguf.GGMLQuantizationType.Q8_0, 64)
    start = data.rindex(offset)
    struct.pack_into("<I", data, start, kind)
    path.write_bytes(data)


def test_of_a_tensor_of_an_unknown_type_only_the_beginning_must_be_there(tmp_path):
    path = tmp_path / "x.gguf"
    length = write(path, FLOATS, QUANTS)
    with_type(path, 999)
    assert utils.length_problem(str(path), strict=True) == ""
    start = length - 96  # where the tensor of 68 bytes and its padding begin
    with path.open("r+b") as file:
        file.truncate(start)
    assert utils.length_problem(str(path)) == ""
    with path.open("r+b") as file:
        file.truncate(start - 1)
    assert utils.length_problem(str(path)) == f"it is cut off: {start - 1} of {start} bytes"


def test_the_last_tensor_of_the_table_need_not_be_the_last_of_the_file(tmp_path):
    path = tmp_path / "x.gguf"
    table = [struct.pack("<Q1sIQIQ", 1, b"t", 1, 40, 24, offset) for offset in (64, 0)]
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 2, 0) + b"".join(table) + bytes(6 + 64 + 39))
    assert utils.length_problem(str(path)) == "it is cut off: 199 of 200 bytes"


@pytest.mark.parametrize(
    "value", [struct.pack("<II", 4, 0), struct.pack("<II", 4, 48), struct.pack("<IB", 0, 32)]
)
def test_an_alignment_that_llama_cpp_refuses_is_a_problem(tmp_path, value):
    path = tmp_path / "x.gguf"
    key = b"general.alignment"
    path.write_bytes(
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", len(key)) + key + value + bytes(64)
    )
    assert utils.length_problem(str(path)) == "its alignment is not a power of two"


def test_sizes_of_all_types_are_those_of_the_library():
    assert {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == utils.BLOCKS


def test_reading_a_file_tells_how_far_it_is(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(bytes(9 << 20))
    told = []
    utils.sha256_of(str(path), told.append)
    assert told == [4 << 20, 8 << 20, 9 << 20]


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("https://user:secret@m.example:8443/a%20b.gguf?token=secret#x", "https://m.example:8443/a%20b.gguf"),
        ("file:///mnt/nfs/x.gguf", "file:///mnt/nfs/x.gguf"),
        ("controller:///srv/x.gguf", "controller:///srv/x.gguf"),
        ("/srv/x.gguf", "/srv/x.gguf"),
        ("", ""),
    ],
)
def test_printed_urls_hold_no_secret(url, printed):
    assert utils.printable_url(url) == printed
