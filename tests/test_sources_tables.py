"""Parquet and WebDataset shards and data sets by name; streamed ones resume at the very row."""

import json
import logging
import multiprocessing
import pickle
import re
from itertools import islice, product
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import tiny_processor
from datasets import ClassLabel, Dataset
from source_data import (
    HEIGHT,
    WIDTH,
    picture,
    png,
    read_metadata,
    records,
    square,
    streams,
    write_imagefolder,
    write_metadata,
    write_parquet,
    write_tar,
)

from peft_vlsm.segmentation.arguments import parse_arguments
from peft_vlsm.segmentation.data.augmentation import Augmentation
from peft_vlsm.segmentation.data.dataset import SegmentationDataset
from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.sources import streaming
from peft_vlsm.segmentation.sources.arguments import DataArguments
from peft_vlsm.segmentation.sources.open import has_split, load_rows, open_stream
from peft_vlsm.segmentation.sources.rows import check_rows
from peft_vlsm.segmentation.sources.streaming import StreamingLoader, StreamingSegmentationDataset
from peft_vlsm.segmentation.sources.tables import Columns

PER_SHARD = (5, 6, 7)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """datasets keeps what it has prepared; bars of tables this small are noise."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def _flags(*flags):
    return parse_arguments(DataArguments, [str(flag) for flag in flags])


@pytest.fixture
def shards(tmp_path):
    for number, count in enumerate(PER_SHARD):
        first = sum(PER_SHARD[:number])
        write_parquet(tmp_path / "data" / "train" / f"{number}.parquet", records(first, count))
    write_parquet(tmp_path / "data" / "validation" / "0.parquet", records(50, 2))
    return tmp_path / "data"


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["on disk", "in memory"])
def test_parquet_shards(shards, streaming):
    args = _flags("--data_dir", shards, "--max_eval_samples", 1, *streaming)
    rows = load_rows(args, "train")
    check_rows(rows)
    assert len(rows) == sum(PER_SHARD) and len(load_rows(args, "val")) == 1 and not has_split(args, "test")
    row = pickle.loads(pickle.dumps(rows[7]))
    image, mask = row.open()
    assert row.index == 7 and row.prompts == {"p1": ["t7", "u7"]} and "row 7" in row.name
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), picture(7)) and np.array_equal(mask, square() > 0)


@pytest.mark.parametrize("place", ["", "data"])
def test_shards_that_their_split_names(tmp_path, place):
    for name, count in (("train-00000-of-00002", 2), ("train-00001-of-00002", 1), ("validation", 1), ("trainer", 4)):
        write_parquet(tmp_path / "data" / place / f"{name}.parquet", records(0, count))
    args = _flags("--data_dir", tmp_path / "data")
    assert [len(load_rows(args, split)) for split in ("train", "val")] == [3, 1]


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["on disk", "in memory"])
@pytest.mark.parametrize("text", [{"txt": b"a square"}, {"json": b'{"prompt": "a square"}'}], ids=["txt", "json"])
def test_webdataset_shards(tmp_path, streaming, text):
    row = {"png": png(picture(5)), "mask.png": png(square()), **text}
    write_tar(tmp_path / "train" / "0.tar", [row, row])
    rows = load_rows(_flags("--train_data_dir", tmp_path / "train", *streaming), "train")
    check_rows(rows)
    assert [row.prompts for row in rows] == [{"p1": ["a square"]}] * 2
    assert np.array_equal(rows[1].open()[1], square() > 0)


def test_a_data_set_by_its_name(shards, tmp_path):
    args = _flags("--dataset_name", shards)
    assert [len(load_rows(args, split)) for split in ("train", "val")] == [sum(PER_SHARD), 2]
    folder = write_imagefolder(tmp_path / "folder" / "train")
    write_metadata(folder, [line | {"prompt": "a square"} for line in read_metadata(folder)])
    args = _flags("--dataset_name", tmp_path / "folder")
    rows = load_rows(args, "train")
    check_rows(rows)
    assert np.array_equal(rows[0].open()[1], square() > 0)
    with pytest.raises(InputError, match="has no validation split"):
        load_rows(args, "val")


def test_columns_of_other_names_and_class_labels(tmp_path):
    rows = [{"scan": row["image"], "truth": row["mask"], "kind": n % 2} for n, row in enumerate(records(0, 3))]
    table = Dataset.from_list(rows).cast_column("kind", ClassLabel(names=["polyp", "ulcer"]))
    (tmp_path / "train").mkdir()
    table.to_parquet(tmp_path / "train" / "0.parquet")
    names = ["--image_column", "scan", "--mask_column", "truth", "--prompt_column", "kind"]
    rows = load_rows(_flags("--data_dir", tmp_path, *names), "train")
    assert [row.prompts["p1"] for row in rows] == [["polyp"], ["ulcer"], ["polyp"]]
    check_rows(rows)
    columns = Columns("scan", "truth", "kind", ["polyp", "ulcer"])
    for label in (-1, 2, None, "polyp"):
        # datasets writes -1 where a row has no label.
        with pytest.raises(InputError, match=f"kind must be one of 2 class labels, it is {label!r}"):
            columns.prompts({"kind": label})


def test_prompts_by_their_numbers_which_rows_may_lack(tmp_path):
    rows = records(0, 2)
    for row, prompts in zip(rows, ({"p0": "", "p2": "b"}, {"p0": "", "p1": "a", "p2": "c"}), strict=True):
        del row["prompt"]
        row["prompts"] = prompts
    write_parquet(tmp_path / "train" / "0.parquet", rows)
    read = load_rows(_flags("--data_dir", tmp_path), "train")
    assert [row.prompts for row in read] == [{"p2": ["b"]}, {"p1": ["a"], "p2": ["c"]}]
    assert SegmentationDataset(read, tiny_processor(), prompt="p2").prompt(1) == "c"
    with pytest.raises(InputError, match="row 0 has no prompt p1; it has p2"):
        SegmentationDataset(read, tiny_processor(), prompt="p1")


def test_rows_that_repeat_another_are_counted(tmp_path, caplog):
    write_parquet(tmp_path / "train" / "0.parquet", [*records(0, 2), *records(0, 2)])
    with caplog.at_level(logging.WARNING, logger="peft_vlsm"):
        assert len(load_rows(_flags("--data_dir", tmp_path), "train")) == 4
    assert "2 rows repeat another one" in caplog.text


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["on disk", "in memory"])
def test_rows_that_differ_in_image_mask_or_prompt_repeat_nothing(tmp_path, caplog, streaming):
    row = records(0, 1)[0]
    other = {"bytes": png(255 - square()), "path": None}
    rows = [row, row | {"image": records(1, 1)[0]["image"]}, row | {"mask": other}, row | {"prompt": ["v", "w"]}]
    write_parquet(tmp_path / "train" / "0.parquet", rows)
    with caplog.at_level(logging.WARNING, logger="peft_vlsm"):
        assert len(load_rows(_flags("--data_dir", tmp_path, *streaming), "train")) == 4
    assert caplog.text == ""


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["on disk", "in memory"])
def test_a_configuration_of_a_data_set_by_its_name(tmp_path, streaming):
    configs = {"polyps": {"train": 2}, "ulcers": {"train": 3, "test": 1}}
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, count in splits.items():
            write_parquet(tmp_path / "set" / config / f"{split}.parquet", records(0, count))
            lines += [f"  - split: {split}", f"    path: {config}/{split}.parquet"]
    (tmp_path / "set" / "README.md").write_text("\n".join([*lines, "---", ""]))
    for config, splits in configs.items():
        args = _flags("--dataset_name", tmp_path / "set", "--dataset_config_name", config, *streaming)
        assert {split: len(load_rows(args, split)) for split in ("train", "test") if has_split(args, split)} == splits


def _row(**change):
    return lambda file: write_parquet(file, [records(0, 1)[0], records(1, 1)[0] | change])


def _write_no_rows(file):
    pq.write_table(pa.Table.from_pylist(records(0, 1)).slice(0, 0), file)


TABLE_PROBLEMS = {
    "no image column": (lambda f: write_parquet(f, [{"a": 1}]), [], "--image_column: the table has no image or jpg"),
    "no such column": (
        _row(),
        ["--mask_column", "m"],
        "--mask_column: the table has no m, it has image, mask",
    ),
    "text for an image": (_row(), ["--image_column", "prompt"], "--image_column prompt holds no pictures"),
    "one column for two": (_row(), ["--mask_column", "image"], "--mask_column image is the column of image too"),
    "no prompt": (_row(prompt=None), [], "row 1 (counted from 0): prompt must be a text"),
    "empty prompt": (_row(prompt=[" "]), [], "row 1 (counted from 0): prompt must be a text"),
    "no rows": (_write_no_rows, [], "f.parquet or a shard beside it cannot be read"),
    "no image": (_row(image=None), [], "row 1, image is empty"),
    "empty image": (_row(image={"bytes": b"", "path": None}), [], "row 1, image is not an image"),
    "a file of this machine": (_row(image={"bytes": None, "path": "/etc/hostname"}), [], "names the file '/etc/hostn"),
    "mask of another size": (_row(mask={"bytes": png(np.zeros((2, 3), np.uint8)), "path": None}), [], "mask is 3x2"),
    "no Parquet": (lambda f: f.write_bytes(b"PAR1 no"), [], "f.parquet or a shard beside it cannot be read"),
    "zero bytes": (lambda f: f.write_bytes(b""), [], "f.parquet or a shard beside it cannot be read"),
}


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["on disk", "in memory"])
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_pictures_may_be_bare_bytes(tmp_path, kind, streaming):
    columns = {"image": pa.array([png(picture(7))], kind), "mask": pa.array([png(square())], kind), "prompt": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    image, mask = load_rows(_flags("--data_dir", tmp_path, *streaming), "train")[0].open()
    assert np.array_equal(np.asarray(image), picture(7)) and np.array_equal(mask, square() > 0)


def test_a_problem_of_a_row_in_memory_is_told_once(tmp_path):
    file = write_parquet(tmp_path / "train.parquet", [records(0, 1)[0] | {"prompt": [" "]}])
    with pytest.raises(InputError, match=rf"^{re.escape(str(file.parent))}, row 0 \(counted from 0\): prompt must"):
        load_rows(_flags("--data_dir", tmp_path, "--streaming"), "train")


@pytest.mark.parametrize("write, flags, problem", TABLE_PROBLEMS.values(), ids=TABLE_PROBLEMS)
def test_a_table_with_a_problem_is_named(tmp_path, write, flags, problem):
    (tmp_path / "train").mkdir()
    write(tmp_path / "train" / "f.parquet")
    with pytest.raises(InputError) as error:
        check_rows(load_rows(_flags("--data_dir", tmp_path, *flags), "train"))
    assert problem in str(error.value)


@pytest.mark.parametrize("flags", [[], ["--streaming"]], ids=["on disk", "streamed"])
def test_a_damaged_webdataset_shard_is_named(tmp_path, flags):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(InputError, match="0.tar or a shard beside it cannot be read"):
        load_rows(_flags("--data_dir", tmp_path, *flags), "train")


def test_an_unknown_name_is_named(tmp_path):
    with pytest.raises(InputError, match="--dataset_name .*nothing cannot be read"):
        load_rows(_flags("--dataset_name", tmp_path / "nothing"), "train")


def _stream(shards, block_rows=4, seed=1, **options):
    stream = open_stream(_flags("--data_dir", shards, "--streaming"))
    return StreamingSegmentationDataset(stream, tiny_processor(), seed=seed, block_rows=block_rows, **options)


def _batches(dataset, count, workers=0):
    batches = islice(StreamingLoader(dataset, 2, workers), count)
    return [
        (batch["places"].tolist(), batch["input_ids"].tolist(), batch["pixel_values"].sum().item())
        for batch in batches
    ]


def _prompts(dataset, count):
    return [example.prompt for example in islice(dataset, count)]


@streams
def test_a_streamed_epoch_has_every_row_once_and_each_another_order(shards):
    total = sum(PER_SHARD)
    prompts = _prompts(_stream(shards), 2 * total)
    first, second = ([int(prompt[1:]) for prompt in part] for part in (prompts[:total], prompts[total:]))
    assert sorted(first) == sorted(second) == list(range(total)) and first != second != sorted(second)
    assert _prompts(_stream(shards), 2 * total) == prompts
    later = _stream(shards)
    later.set_epoch(1)
    assert _prompts(later, total) == prompts[total:] and later.epoch == 1


@streams
def test_seed_and_epoch_decide_the_order_of_rows_in_a_block_and_their_prompts(tmp_path):
    write_parquet(tmp_path / "train" / "0.parquet", records(0, 8))
    orders, wordings = set(), set()
    for seed in range(4):
        prompts = _prompts(_stream(tmp_path, block_rows=8, seed=seed), 24)
        for epoch in (prompts[:8], prompts[8:16], prompts[16:]):
            orders.add(tuple(prompt[1:] for prompt in epoch))
            wordings.add(tuple(prompt[0] for prompt in epoch))
    assert len(orders) == 12 and len(wordings) > 10


@streams
def test_seed_and_epoch_decide_the_order_of_shards(shards):
    total, orders = sum(PER_SHARD), {}
    for seed in range(4):
        rows = [int(prompt[1:]) for prompt in _prompts(_stream(shards, seed=seed), 3 * total)]
        for epoch in range(3):
            numbers = np.searchsorted((5, 11), rows[epoch * total : (epoch + 1) * total], side="right")
            orders[seed, epoch] = tuple(dict.fromkeys(numbers.tolist()))
    assert {len(order) for order in orders.values()} == {3}
    assert len({orders[seed, 0] for seed in range(4)}) > 1 and len({orders[0, epoch] for epoch in range(3)}) > 1


@streams
def test_streamed_rows_are_varied_too(shards):
    plain = islice(_stream(shards), 18)
    mirrored = islice(_stream(shards, augmentation=Augmentation(flip=True)), 18)
    flips = []
    for before, after in zip(plain, mirrored, strict=True):
        assert before.prompt == after.prompt and not before.mask.equal(before.mask.flip(1))
        assert after.mask.equal(before.mask) or after.mask.equal(before.mask.flip(1))
        flips.append(not after.mask.equal(before.mask))
    assert 0 < sum(flips) < 18


@streams
def test_the_epoch_of_a_stream_is_the_one_of_its_slowest_worker(shards):
    dataset = _stream(shards)
    for worker, epoch in ((0, 2), (1, 1)):
        dataset.advance(worker, 2, {"epoch": epoch, "block": None, "before": 0, "given": 0})
    assert dataset.epoch == 1


@streams
@pytest.mark.parametrize("given", [1, 2, 5, 8, 9, 10, 14])
def test_a_resumed_stream_gives_the_rows_that_were_to_come(shards, given, caplog):
    augmentation = Augmentation(flip=True, colour=0.3)
    whole = _batches(_stream(shards, augmentation=augmentation), 20)
    first = _stream(shards, augmentation=augmentation)
    assert _batches(first, given) == whole[:given]
    resumed = _stream(shards, augmentation=augmentation)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert _batches(resumed, 20 - given) == whole[given:]
    assert caplog.text == ""


@streams
def test_a_stream_of_two_workers_resumes_at_either(shards):
    whole = _batches(_stream(shards), 12, workers=2)
    for given in (3, 6):
        first, resumed = _stream(shards), _stream(shards)
        assert _batches(first, given, workers=2) == whole[:given]
        resumed.load_state_dict(first.state_dict())
        assert _batches(resumed, 12 - given, workers=2) == whole[given:]


@streams
def test_streams_resume_on_what_they_were_made_on(shards):
    first = _stream(shards)
    _batches(first, 1)
    with pytest.raises(InputError, match="--dataloader_num_workers 2: .* of a run with 1"):
        next(iter(StreamingLoader(first, 2, num_workers=2)))
    with pytest.raises(InputError, match="is of process 0 of 1, this is process 1 of 2"):
        _stream(shards, rank=1, world_size=2).load_state_dict(first.state_dict())


@streams
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_a_stream_out(shards, world_size):
    """Three processes have a shard each; two take every other row."""
    shares = []
    for rank in range(world_size):
        dataset = _stream(shards, rank=rank, world_size=world_size)
        share = []
        for example in dataset:
            if dataset.epoch:
                break
            share.append((int(example.prompt[1:]), example.place))
        shares.append(share)
    rows = [row for share in shares for row, _ in share]
    places = [place for share in shares for _, place in share]
    assert sorted(rows) == list(range(sum(PER_SHARD))) and len(set(places)) == len(places)


@streams
def test_workers_of_several_processes_share_a_stream_out(shards, monkeypatch):
    rows = []
    for rank, worker in product(range(2), range(3)):
        info = SimpleNamespace(id=worker, num_workers=3)
        monkeypatch.setattr(streaming, "get_worker_info", lambda info=info: info)
        for example in _stream(shards, rank=rank, world_size=2):
            if example.position["epoch"] > 0:
                break
            rows.append((int(example.prompt[1:]), example.place))
    assert sorted(row for row, _ in rows) == list(range(sum(PER_SHARD)))
    assert len({place for _, place in rows}) == len(rows)


@streams
def test_a_stream_of_webdataset_shards(tmp_path):
    for shard in range(2):
        rows = [{"jpg": png(picture(n)), "mask.png": png(square()), "txt": f"t{shard}{n}".encode()} for n in range(3)]
        write_tar(tmp_path / "train" / f"{shard}.tar", rows)
    whole = _prompts(_stream(tmp_path, block_rows=2), 12)
    assert sorted(whole[:6]) == sorted(whole[6:]) == ["t00", "t01", "t02", "t10", "t11", "t12"]
    for given in (1, 3, 4, 8):
        first, resumed = _stream(tmp_path, block_rows=2), _stream(tmp_path, block_rows=2)
        _prompts(first, given)
        resumed.load_state_dict(first.state_dict())
        assert _prompts(resumed, 12 - given) == whole[given:]


@streams
def test_max_train_samples_of_a_stream(shards):
    stream = open_stream(_flags("--data_dir", shards, "--streaming", "--max_train_samples", 3))
    dataset = StreamingSegmentationDataset(stream, tiny_processor())
    prompts = _prompts(dataset, 9)
    assert {prompt[1:] for prompt in prompts} == {"0", "1", "2"}


@streams
def test_a_streamed_row_that_cannot_be_used_is_named(tmp_path):
    rows = records(0, 3)
    rows[2]["image"] = {"bytes": b"no image", "path": None}
    write_parquet(tmp_path / "train" / "0.parquet", rows)
    with pytest.raises(InputError, match=r"train, row \d of reader 0, image"):
        _prompts(_stream(tmp_path), 3)
    rows[0]["prompt"] = []
    write_parquet(tmp_path / "train" / "0.parquet", rows)
    with pytest.raises(InputError, match="train, first row: prompt must be a text"):
        _stream(tmp_path)


@streams
def test_more_readers_than_rows(tmp_path):
    write_parquet(tmp_path / "train" / "0.parquet", records(0, 1))
    with pytest.raises(InputError, match="has no row for reader 2 of 3"):
        next(iter(_stream(tmp_path, rank=2, world_size=3)))


@streams
def test_a_stream_and_a_table_go_to_spawned_workers(shards):
    rows = load_rows(_flags("--data_dir", shards), "val")
    for dataset in (_stream(shards), SegmentationDataset(rows, tiny_processor(), seed=0)):
        content = multiprocessing.get_context("spawn").reducer.ForkingPickler.dumps(dataset)
        again = pickle.loads(content)
        assert next(iter(again)).prompt == next(iter(dataset)).prompt
        assert next(iter(again)).mask.shape[-1] == 32 and (WIDTH, HEIGHT) == rows[0].open()[0].size
