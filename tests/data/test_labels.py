"""Classes by name or index."""

import unicodedata

import pytest

from biflow.data.labels import check_labels, label_of
from biflow.errors import InputError

COMPOSED, APART = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("given", "known"), [(COMPOSED, APART), (APART, COMPOSED), (APART, APART)])
def test_a_class_is_found_however_its_accents_are_encoded(given, known):
    assert label_of(given, 2, ["thé", known]) == 1


def test_an_exact_name_comes_before_one_that_is_encoded_otherwise():
    assert [label_of(name, 2, [COMPOSED, APART]) for name in (COMPOSED, APART)] == [0, 1]


def test_text_that_is_a_number_is_an_index_only_where_names_are_no_other_numbers():
    ten = [str(i) for i in range(1, 11)]
    assert check_labels(["1", "10", 0], 10, ten).tolist() == [0, 9, 0]
    assert check_labels(["0", "2"], 2, ["0", "1"]).tolist() == [0, 2]
    assert label_of("1", 2, ["a", "b"]) == 1
    with pytest.raises(InputError, match="Unknown class '0'; "):
        label_of("0", 10, ten)
