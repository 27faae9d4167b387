"""The words of the embedded dialect: class tokens, prompts and answer templates (CytoChat's grammar)."""

from __future__ import annotations

EPITHELIAL: tuple[str, ...] = ("ascus", "lsil", "asch", "hsil", "scc", "agc")
ORGANISMS: tuple[str, ...] = ("candida", "trichomonas", "flora", "actinomyces", "herps")
NORMAL: tuple[str, ...] = (
    "superficial",
    "intermediate",
    "parabasal",
    "metaplastic",
    "endocervical",
    "neutrophil",
)
WHITE: tuple[str, ...] = ("neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte", "ig")
"""Types of white blood cell; ig is an immature granulocyte (promyelocyte to metamyelocyte)."""
NUCLEATED: tuple[str, ...] = (*WHITE, "erythroblast")
BLOOD_UNTYPED: tuple[str, ...] = ("rbc", "wbc", "platelet")
BLOOD: tuple[str, ...] = (*BLOOD_UNTYPED, *NUCLEATED)
ABNORMAL = "abnormal"
CERVIX: tuple[str, ...] = EPITHELIAL + ORGANISMS + NORMAL
CLASSES: tuple[str, ...] = tuple(dict.fromkeys(CERVIX + BLOOD))
"""Classes a field's annotation may carry; the index is the class id used by the warm-up."""

FULL_NAMES: dict[str, str] = {
    "ascus": "Atypical squamous cells of undetermined significance (ASC-US)",
    "lsil": "Low-grade squamous intraepithelial lesion (LSIL)",
    "asch": "Atypical squamous cells, cannot exclude HSIL (ASC-H)",
    "hsil": "High-grade squamous intraepithelial lesion (HSIL)",
    "scc": "Squamous cell carcinoma (SCC)",
    "agc": "Atypical glandular cells (AGC)",
    "candida": "Fungal organisms consistent with Candida",
    "trichomonas": "Trichomonas vaginalis",
    "flora": "Shift in flora suggestive of bacterial vaginosis",
    "actinomyces": "Bacteria consistent with Actinomyces",
    "herps": "Cellular changes consistent with herpes simplex virus",
}
SEVERITY: tuple[str, ...] = ("ascus", "agc", "lsil", "asch", "hsil", "scc")
"""Epithelial categories from least to most severe, to name a field's worst category."""

SCREEN_TOPIC = "Is any abnormal cell present?"
BLOOD_TOPIC = "Is a white blood cell present?"
TYPE_TOPIC = "Which type is the white blood cell?"
CATEGORY_TOPIC = "Which category fits the image?"
NO_CELLS = "no cells"
MCQ = (
    "Please answer the multiple-choice question based on the image [{topic}], and select the best option "
    "from the following options [{options}]. Just answer the option."
)
GROUND = "Locate all {name}."
REFER = "Give a brief description of region.<region>{box}</region>"
DESCRIBE = "Describe the Cytology diagnosis results."
VQA_ABNORMAL = "Were any abnormal cells found during the examination?"
VQA_BACKGROUND = "What cells are present in the background of smears?"

BOX_OPEN = " is located at <region>"
BOX_CLOSE = "</region>."
MOST_OBJECTS = 40
"""Ordinals that have a token of their own; higher ones still encode."""

LETTERS = "ABCDEFGH"

PLURAL: dict[str, str] = {
    "superficial": "superficial squamous cells",
    "intermediate": "intermediate squamous cells",
    "parabasal": "parabasal cells",
    "metaplastic": "squamous metaplastic cells",
    "endocervical": "endocervical cells",
    "neutrophil": "neutrophils",
    "rbc": "red blood cells",
    "wbc": "white blood cells",
    "platelet": "platelets",
    "eosinophil": "eosinophils",
    "basophil": "basophils",
    "lymphocyte": "lymphocytes",
    "monocyte": "monocytes",
    "ig": "immature granulocytes",
    "erythroblast": "erythroblasts",
}
NEGATIVE = "Negative for intraepithelial lesion or malignancy"

EXTRA_TEXT: tuple[str, ...] = (
    "Yes, abnormal cells were found: hsil and lsil. No abnormal cells were found. No, no abnormal cells were found.",
    "Mainly superficial and intermediate cells. In the background are: , with and a few no cells are seen.",
    "Blood smear field with 1 white blood cell, about 12 red blood cells and no platelets. platelet cells.",
    "1 abnormal cell is seen. 3 abnormal cells are seen. Organisms: are seen; in the background.",
    "No cells are seen. No hsil is found. none nothing image tile slide field zoom",
    "Is there any abnormality in this picture? How many are there? Count the cells. What is this? normal abnormal",
    "Answer the question with a single phrase. Please describe the image in detail. Locate the cells in region.",
    "NILM ASC-US ASC-H LSIL HSIL SCC AGC HSV Candida Trichomonas Actinomyces bacterial vaginosis A.no, B.yes",
    "Which category is the worst? Which category of the Bethesda system fits this cervical field best?",
    "What type of cell is in the region? cervical cytology blood smear urine thyroid serous fluid",
    "Is a platelet present? Is an organism present? Which organism is present? Is there any HSIL cell?",
    "Differential: 1 neutrophil, 2 lymphocytes and 1 monocyte; immature granulocyte. eosinophil basophil erythroblast",
    "squamous glandular nucleus cytoplasm large small dark pale single clustered cells enlarged nuclei",
)
