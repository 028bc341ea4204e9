"""Question files: any cell that csv can write is read back, pictures come from where they are, errors name the row."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sa2va.eval.qa.records import RecordFile
from sa2va.eval.qa.tsv import QuestionFile, as_clip


def pixels(seed: int = 0, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(picture: np.ndarray, **options: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", **options)
    return base64.b64encode(file.getvalue()).decode()


def write_tsv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Rows as VLMEvalKit's files have them; columns in order of appearance, cells that are not given stay empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(index: object = 1, **cells: object) -> dict[str, object]:
    return {"index": index, "image": encoded(pixels()), "question": "What?", "answer": "A", **cells}


def opened(path: Path, *rows: Mapping[str, object]) -> QuestionFile:
    return QuestionFile(write_tsv(path / "some.tsv", rows))


# -- records -----------------------------------------------------------------------------------------------------------

#: A lone carriage return is a line end to csv and nothing here; a file's mark of its encoding is no text.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00\ufeff"), max_size=12) | st.sampled_from(
    ['"', '""', '"a"\tb', "a\n\nb", '"\n', "\t", 'a"b', '\n"']
)


@given(st.lists(st.lists(texts, min_size=2, max_size=4), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_whatever_csv_writes_is_read_back(tmp_path_factory, rows: list[list[str]], end: str):
    path = tmp_path_factory.mktemp("records") / "any.tsv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator=end).writerows(rows)
    reader = RecordFile(path)
    records = list(reader)
    assert [[cell.decode() for cell in record.cells] for record in records] == rows
    assert reader.md5 == hashlib.md5(path.read_bytes()).hexdigest()
    for record in records:
        assert reader.cells_at(record.offset, record.length) == record.cells


def test_records_know_their_lines(tmp_path: Path):
    path = tmp_path / "lines.tsv"
    path.write_bytes(b'\xef\xbb\xbfa\tb\n"one\ntwo"\tx\n\n3\t4')
    records = list(RecordFile(path))
    assert [record.cells for record in records] == [(b"a", b"b"), (b"one\ntwo", b"x"), (b"3", b"4")]
    assert [record.line for record in records] == [1, 2, 5]


def test_a_quote_inside_a_cell_is_text(tmp_path: Path):
    path = tmp_path / "quotes.tsv"
    path.write_text('a\tb\n5" wide\tx\n"q"r\ty\n')
    assert [record.cells for record in RecordFile(path)][1:] == [(b'5" wide', b"x"), (b"qr", b"y")]


def test_a_quote_that_never_closes_is_found(tmp_path: Path):
    path = tmp_path / "open.tsv"
    path.write_text('a\tb\n1\t"never\n2\t3\n')
    with pytest.raises(ValueError, match=r"open\.tsv, line 2: a quoted cell is not closed"):
        list(RecordFile(path))


def test_records_are_bounded(tmp_path: Path):
    path = tmp_path / "long.tsv"
    path.write_text("a\tb\n" + "x" * 500)
    with pytest.raises(ValueError, match=r"line 2: the record is longer than 100 bytes"):
        list(RecordFile(path, max_record=100))
    path.write_text('a\tb\n"' + "x\n" * 500)
    with pytest.raises(ValueError, match=r"line 2: the record is longer than 100 bytes"):
        list(RecordFile(path, max_record=100))


# -- rows --------------------------------------------------------------------------------------------------------------


def test_a_row_has_its_texts(tmp_path: Path):
    cells = {
        **{"A": "cat", "B": "", "C": "None", "hint": "Look.", "category": "animals", "l2-category": "perception"},
        **{"split": "dev", "g_index": 7},
    }
    (question,) = opened(tmp_path, row(17, question='What "is"\nit?', **cells)).questions
    assert (question.row, question.index, question.question) == (1, "17", 'What "is"\nit?')
    assert question.options == {"A": "cat", "C": "None"}
    assert (question.answer, question.hint, question.group, question.split) == ("A", "Look.", "7", "dev")
    assert (question.category, question.l2_category) == ("animals", "perception")


def test_pictures_are_decoded_when_asked_for(tmp_path: Path):
    pictures = [pixels(seed) for seed in range(3)]
    file = opened(tmp_path, *(row(i, image=encoded(picture)) for i, picture in enumerate(pictures)))
    for question, picture in zip(reversed(file.questions), reversed(pictures), strict=True):
        np.testing.assert_array_equal(file.pictures(question), [picture])
        assert file.sizes(question) == [(6, 8)]


def test_rows_refer_to_the_picture_of_another(tmp_path: Path):
    """MMBench's rotations; the picture may stand before or after."""
    file = opened(tmp_path, row(1000003, image="3"), row(3, image=encoded(pixels(3))), row(4))
    first, second, other = file.questions
    assert first.picture == second.picture != other.picture
    np.testing.assert_array_equal(file.pictures(first), [pixels(3)])


def test_equal_pictures_are_one(tmp_path: Path):
    first, second, other = opened(tmp_path, row(1), row(2), row(3, image=encoded(pixels(9)))).questions
    assert first.picture == second.picture != other.picture


def test_pictures_in_files(tmp_path: Path):
    for folder, seed in ((tmp_path, 1), (tmp_path / "images" / "some", 2)):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(folder / f"{seed}.png")
    rows = [{"index": i, "question": "What?", "answer": "A", "image_path": f"{i}.png"} for i in (1, 2)]
    file = opened(tmp_path, *rows, {**rows[0], "index": 3, "image_path": str(tmp_path / "1.png")})
    for question, seed in zip(file.questions, (1, 2, 1), strict=True):
        np.testing.assert_array_equal(file.pictures(question), [pixels(seed)])


def test_several_pictures_of_one_question(tmp_path: Path):
    wide, tall = pixels(1, 4, 10), pixels(2, 12, 6)
    file = opened(tmp_path, row(1, image=str([encoded(wide), encoded(tall)])), row(2, image=str([encoded(wide)])))
    several, single = file.questions
    assert file.sizes(several) == [(4, 10), (12, 6)]
    assert [picture.shape for picture in as_clip(file.pictures(several))] == [(12, 10, 3)] * 2
    np.testing.assert_array_equal(file.pictures(single), [wide])


def test_frames_of_one_size_stay_as_they_are():
    frames = [pixels(1), pixels(2)]
    np.testing.assert_array_equal(as_clip(frames), frames)


def test_sizes_are_those_of_upright_pictures(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = opened(tmp_path, row(image=encoded(pixels(height=6, width=8), exif=exif)))
    assert file.sizes(file.questions[0]) == [file.pictures(file.questions[0])[0].shape[:2]] == [(8, 6)]


def test_rows_without_a_picture_are_left_out(tmp_path: Path):
    file = opened(tmp_path, row(1), row(2, image=""), row(3))
    assert [question.index for question in file.questions] == ["1", "3"]
    assert file.pictureless == 1


# -- what is wrong with a file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("not*base64" * 10, "not valid base64"),
        (base64.b64encode(b"no picture at all " * 9).decode(), "not a picture in a format that can be read"),
        (encoded(pixels())[:-1], "not valid base64"),
        (encoded(pixels(height=60, width=60))[:4000], "damaged or cut short"),
        ("[" + "'x'" * 30, "not valid base64"),
        ("[" + "x" * 80 + "]", "expected a list of texts"),
    ],
)
def test_a_damaged_picture_names_its_row(tmp_path: Path, image: str, message: str):
    file = opened(tmp_path, row(4), row(17, image=image))
    np.testing.assert_array_equal(file.pictures(file.questions[0]), [pixels()])
    with pytest.raises(ValueError, match=rf"some\.tsv, row 2 \(index 17\): its picture cannot be read: .*{message}"):
        file.pictures(file.questions[1])


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path: Path):
    path = write_tsv(tmp_path / "some.tsv", [row(17, image=encoded(pixels(height=20, width=20)))])
    file = QuestionFile(path, max_pixels=399)
    for look in (file.pictures, file.sizes):
        with pytest.raises(ValueError, match=r"index 17\).*20x20 pixels, more than max_pixels=399"):
            look(file.questions[0])


def test_a_missing_picture_file_is_named(tmp_path: Path):
    file = opened(tmp_path, {"index": 5, "question": "What?", "answer": "A", "image_path": "gone.png"})
    with pytest.raises(ValueError, match=r"row 1 \(index 5\): its picture cannot be read: there is no file gone\.png"):
        file.pictures(file.questions[0])


def test_a_changed_file_is_noticed(tmp_path: Path):
    file = opened(tmp_path, row(1), row(2))
    file.path.write_bytes(file.path.read_bytes()[:200])
    with pytest.raises(ValueError, match="has changed since it was opened"):
        file.pictures(file.questions[1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"index": 1, "question": "What?"}],
            r"lacks the columns answer, image or image_path; its first line has index",
        ),
        ([row(1), row(1)], r"row 2 \(index 1\): row 1 has the same index"),
        ([row(1, image="77")], r"row 1 \(index 1\): its image is '77', but no row of that index has one"),
        ([row(1, image="2"), row(2, image="")], r"its image is '2', but no row"),
        ([row(1, image="")], "no row with a picture"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, rows: list[dict[str, object]], message: str):
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, *rows)


def test_a_row_with_too_few_cells_is_named(tmp_path: Path):
    path = write_tsv(tmp_path / "some.tsv", [row(1), row(2)])
    path.write_text(path.read_text() + "3\tx\n")
    with pytest.raises(ValueError, match=r"row 3 \(line 4\): 2 cells, but the header has 4 columns"):
        QuestionFile(path)


def test_text_that_is_not_utf8_is_named(tmp_path: Path):
    path = write_tsv(tmp_path / "some.tsv", [row(1)])
    path.write_bytes(path.read_bytes().replace(b"What?", b"Wh\xff?"))
    with pytest.raises(ValueError, match=r"row 1 \(line 2\) is not UTF-8"):
        QuestionFile(path)


def test_an_empty_file_is_refused(tmp_path: Path):
    (tmp_path / "some.tsv").write_text("")
    with pytest.raises(ValueError, match="lacks the columns index, question, answer"):
        QuestionFile(tmp_path / "some.tsv")
