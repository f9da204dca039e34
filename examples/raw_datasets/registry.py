"""The data sets by name."""

from pathlib import Path

from raw_datasets.brain_mri import list_brain_mri
from raw_datasets.busi import list_busi
from raw_datasets.camus import FOLDERS as CAMUS_FOLDERS
from raw_datasets.camus import list_camus
from raw_datasets.chexlocalize import list_chexlocalize
from raw_datasets.dfu import list_dfu
from raw_datasets.isic2016 import list_isic2016
from raw_datasets.polyps import list_bkai, list_clinicdb, list_kvasir
from raw_datasets.samples import Dataset

NOTICES = Path(__file__).parents[1] / "notices"

DATASETS = {
    "brain-mri": Dataset(
        list_brain_mri,
        needs_raw=False,
        notice=NOTICES / "brain-mri.txt",
        description="slices of the MNI152 T1 template: grey matter, white matter, brain; nothing to download",
    ),
    **{
        name: Dataset(list_samples, True, NOTICES / f"{name}.txt", description, folders)
        for name, list_samples, description, folders in (
            ("kvasir", list_kvasir, "Kvasir-SEG: polyps in colonoscopy", {}),
            ("bkai", list_bkai, "BKAI-IGH NeoPolyp: polyps in colonoscopy", {}),
            ("clinicdb", list_clinicdb, "CVC-ClinicDB: polyps in colonoscopy", {}),
            ("isic2016", list_isic2016, "ISIC 2016 part 1: skin lesions", {}),
            ("dfu", list_dfu, "DFUC2022 or FUSeg: diabetic foot ulcers", {}),
            ("camus", list_camus, "CAMUS: heart structures in ultrasound", CAMUS_FOLDERS),
            ("busi", list_busi, "BUSI: tumors in breast ultrasound", {}),
            ("chexlocalize", list_chexlocalize, "CheXlocalize: findings in chest X-rays", {}),
        )
    },
}
