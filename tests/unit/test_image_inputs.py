"""The hash of an image's inputs changes exactly when the image has to be built anew."""

import re
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from image_inputs import image_input_hash

ROOT = Path(__file__).parents[2]
ARGUMENTS = {"BACKEND": "cpu", "VERSION": "0.3.36", "RUN_UID": 10002}


@pytest.fixture
def context(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "healthcheck").write_text("#!/bin/sh\n")
    return tmp_path


def hash_of(context, names=("Dockerfile", "healthcheck"), **changed):
    return image_input_hash(str(context), list(names), {**ARGUMENTS, **changed})


def test_the_hash_is_64_hexadecimal_digits(context):
    assert re.fullmatch(r"[0-9a-f]{64}", hash_of(context))


def test_the_same_inputs_give_the_same_hash_in_whatever_order(context):
    arguments = dict(reversed(ARGUMENTS.items()))
    assert hash_of(context) == image_input_hash(str(context), ["healthcheck", "Dockerfile"], arguments)


def test_a_number_and_its_digits_are_the_same_argument(context):
    assert hash_of(context, RUN_UID="10002") == hash_of(context)


def test_a_changed_argument_changes_the_hash(context):
    assert hash_of(context, RUN_UID=10003) != hash_of(context)


def test_changed_content_changes_the_hash(context):
    before = hash_of(context)
    (context / "healthcheck").write_text("#!/bin/sh\nexit 1\n")
    assert hash_of(context) != before


def test_a_renamed_file_changes_the_hash(context):
    before = hash_of(context)
    (context / "healthcheck").rename(context / "check")
    assert hash_of(context, names=("Dockerfile", "check")) != before


def test_files_that_are_not_named_do_not_count(context):
    before = hash_of(context)
    (context / "settings-0.3.36.json").write_text("{}\n")
    assert hash_of(context) == before


def test_a_missing_file_is_named(context):
    with pytest.raises(AnsibleFilterError, match="nowhere"):
        hash_of(context, names=("nowhere",))
