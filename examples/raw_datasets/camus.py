"""CAMUS (echocardiography): three structures an image, two views and two instants a patient, NIfTI or MHD files.

Read are `database_nifti/patientNNNN` with the published `database_split/subgroup_*.txt`, where there are such files,
and `training/patientNNNN` with `testing/patientNNNN` of the first release. A patient lies in one split.
"""

import zlib
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from peft_vlsm.segmentation.errors import InputError
from peft_vlsm.segmentation.prompts.templates import compose_heart_prompts
from raw_datasets.files import fit, read_facts, search_bases
from raw_datasets.samples import Sample

STRUCTURES = {1: "Left ventricular cavity", 2: "Myocardium", 3: "Left atrium cavity"}
VIEWS = {"2CH": "two-chamber", "4CH": "four-chamber"}
INSTANTS = {"ED": "diastole", "ES": "systole"}
SEXES = {"F": "female", "M": "male"}
SUFFIXES = (".nii.gz", ".nii", ".mhd")
PLACES = {"": None, "database_nifti": None, "training": None, "testing": "test"}
SUBGROUPS = {"subgroup_training.txt": None, "subgroup_validation.txt": "val", "subgroup_testing.txt": "test"}
EXPECTED = (
    "CAMUS as published, patient0001/patient0001_2CH_ED.nii.gz (or .mhd) with patient0001_2CH_ED_gt.nii.gz, below RAW "
    "or its database_nifti/, training/ or testing/"
)
# Files of validation lie beside those of training, as in MedVLSM; testing of the first release repeats names.
FOLDERS = {"train": "train", "val": "train", "test": "test"}


def list_camus(raw: Path) -> list[Sample]:
    """Three samples for each annotated image; the images of `testing/` often come without masks, and are left out."""
    base = next((base for base in search_bases(raw) if _list_patients(base)), None)
    if base is None:
        raise InputError(f"{raw / 'patient0001'} is not a folder: expected {EXPECTED}")
    patients, published = _list_patients(base), _read_subgroups(base)
    samples = []
    for folder, split in patients:
        for view in VIEWS:
            for instant in INSTANTS:
                samples += _list_image(folder, view, instant, published.get(folder.name, split))
    if not samples:
        raise InputError(f"{patients[0][0]} holds no annotated image: expected {EXPECTED}")
    return samples


def _list_patients(base: Path) -> list[tuple[Path, str | None]]:
    """Each patient's folder, with the split that the folder round it stands for."""
    return [
        (folder, split)
        for place, split in PLACES.items()
        for folder in sorted((base / place).glob("patient*"))
        if folder.is_dir()
    ]


def _list_image(folder: Path, view: str, instant: str, split: str | None) -> list[Sample]:
    stem = f"{folder.name}_{view}_{instant}"
    image, labels = _find(folder, stem), _find(folder, f"{stem}_gt")
    if image is None and labels is None or labels is None and folder.parent.name == "testing":
        return []
    if image is None or labels is None:
        missing = stem if image is None else f"{stem}_gt"
        raise InputError(f"{folder / missing}.nii.gz (or .mhd) does not exist: expected {EXPECTED}")
    facts = _read_facts(folder / f"Info_{view}.cfg")
    return [
        Sample(
            split=split,
            image_name=f"{stem}.png",
            mask_name=f"mask_{label}/{stem}_gt.png",
            category=label - 1,
            class_names=(name,),
            load=partial(_load, image, labels, label),
            describe=partial(compose_heart_prompts, view=VIEWS[view], instant=INSTANTS[instant], **facts),
            may_be_empty=True,
            source=image,
            patient=f"{folder.parent.name}/{folder.name}",
            segment_id=stem,
        )
        for label, name in STRUCTURES.items()
    ]


def _find(folder: Path, stem: str) -> Path | None:
    return next((folder / (stem + suffix) for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()), None)


def _load(image: Path, labels: Path, label: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, numbers = _to_eight_bits(_read(image)), _read(labels)
    return pixels, fit(np.round(numbers) == label, labels, pixels, image)


@lru_cache(maxsize=4)
def _read(path: Path) -> np.ndarray:
    """The slice of a file, (height, width)."""
    array = _read_mhd(path) if path.suffix == ".mhd" else _read_nifti(path)
    if array.ndim < 2 or array.size != array.shape[-1] * array.shape[-2]:
        raise InputError(f"{path} has shape {array.shape}: expected one slice, as of ED and ES")
    if not np.isfinite(array).all():
        raise InputError(f"{path} holds values that are not finite: load it again")
    return array.reshape(array.shape[-2:])


def _read_nifti(path: Path) -> np.ndarray:
    """With nibabel, since SimpleITK gives what a truncated file has and zeros."""
    try:
        import nibabel
    except ImportError:
        raise InputError('camus needs nibabel to read NIfTI: pip install "peft-vlsm[medical]"') from None
    try:
        # NIfTI counts columns first.
        return np.asarray(nibabel.load(path).dataobj).T
    except (OSError, ValueError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _read_mhd(path: Path) -> np.ndarray:
    try:
        import SimpleITK
    except ImportError:
        raise InputError('camus needs SimpleITK to read MHD: pip install "peft-vlsm[medical]"') from None
    try:
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[-1].strip()}") from error


def _to_eight_bits(array: np.ndarray) -> np.ndarray:
    """Levels of 0 to 255 stay; another range is stretched to them."""
    low, high = float(array.min()), float(array.max())
    if low >= 0 and high <= 255:
        return np.round(array).astype(np.uint8)
    # An image of one level shows nothing, whatever the level.
    return np.round((array - low) * (255 / (high - low or 1))).astype(np.uint8)


def _read_facts(file: Path) -> dict[str, str | int]:
    """Sex, age and image quality as prompts say them, as far as the file tells."""
    if not file.is_file():
        return {}
    lines = [line.partition(":") for line in read_facts(file).splitlines()]
    values = {key.strip(): value.strip() for key, _, value in lines}
    facts: dict[str, str | int] = {}
    if values.get("Sex") in SEXES:
        facts["sex"] = SEXES[values["Sex"]]
    if values.get("Age", "").isdecimal():
        facts["age"] = int(values["Age"])
    if values.get("ImageQuality"):
        facts["quality"] = values["ImageQuality"].lower()
    return facts


def _read_subgroups(base: Path) -> dict[str, str | None]:
    """The published split of each patient, where the files are there."""
    splits: dict[str, str | None] = {}
    for folder in (base / "database_split", base):
        for name, split in SUBGROUPS.items():
            if (folder / name).is_file():
                splits.update(dict.fromkeys(read_facts(folder / name).split(), split))
    return splits
