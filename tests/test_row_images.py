"""What names the images of rows, and which rows show the same one."""

from pathlib import Path

import numpy as np
import pytest
from builders import write_dataset
from source_data import coco_content, png, records, square, write_coco, write_parquet

from peft_vlsm.segmentation.data.annotations import AnnotationRow, read_annotations
from peft_vlsm.segmentation.data.row_images import image_name, images_of, joined_mask
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources.coco import read_coco
from peft_vlsm.segmentation.sources.tables import RecordRow, find_columns, load_table, read_records, undecoded

RECORDS = {
    "a folder": ("/data/polyps/test, row 7", "test-row-7.png"),
    "a data set of the Hub": ("anna/polyps.v2 (test), row 7", "polyps.v2-test-row-7.png"),
    "letters of elsewhere": ("/data/мозг, row 0", "мозг-row-0.png"),
}


@pytest.fixture
def record(tmp_path):
    file = write_parquet(tmp_path / "data" / "0.parquet", records(0, 1))
    table = load_table("parquet", [file], streaming=True)
    columns = find_columns(table.features, {"image": None, "mask": None, "prompt": None}, takes_paths=False)
    (row,) = read_records("data", undecoded(table, columns), columns)
    return row


@pytest.mark.parametrize("name, file", RECORDS.values(), ids=RECORDS)
def test_a_record_gives_its_image_a_name(record, name, file):
    row = RecordRow(0, record.prompts, name, record.record, record.columns)
    (image,) = images_of([row])
    assert (image.file, image.name, str(image), image.index) == (name, Path(file), name, None)
    assert image.read().tobytes() == row.open()[0].tobytes()


def test_rows_of_one_file_are_one_image(tmp_path):
    rows = read_coco(
        write_coco(tmp_path / "coco") / "annotations" / "instances_train2017.json", tmp_path / "coco/images"
    )
    images = images_of(rows)
    assert [image.file for image in images] == list(dict.fromkeys(map(image_name, rows)))
    assert [len(image.rows) for image in images] == [2, 1] and len(coco_content()["images"]) == 2
    masks = [row.open()[1] for row in images[0].rows]
    assert np.array_equal(joined_mask(images[0].rows), masks[0] | masks[1])
    assert masks[0].sum() < joined_mask(images[0].rows).sum() > masks[1].sum()


def test_every_mask_of_an_image_is_checked(tmp_path):
    folder = write_dataset(tmp_path / "data", {"test": 1})
    (row,) = read_annotations(folder, "test")
    other = AnnotationRow(1, row.image, folder / "masks" / "small.png", row.prompts)
    other.mask.write_bytes(png(square()))
    (image,) = images_of([row, other])
    with pytest.raises(InputError, match="small.png"):
        image.check()
