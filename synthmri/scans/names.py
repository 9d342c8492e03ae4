"""What the words in names of files and folders mean: whose a scan is, or only when, where and how it was made."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from synthmri.scans.contrast import is_contrast_word


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


Words = tuple[str | int, ...]  # lower case, numbers apart and without leading zeros: `Patient_01` is ("patient", 1)

# Forms of names that say by themselves whose a scan is: a word for a person with a number, or the ids of well-known
# collections, up to where a visit follows. The group is the id where the match holds more.
_PERSON = r"sub|subj|subject|pat|patient|case|participant|proband|person|volunteer|patientid|subjectid|pid"
ID_FORMS = [
    r"sub-([a-z0-9]+)",  # BIDS
    rf"(?:{_PERSON})[-_ .]*\d+",
    r"pt[-_ .]*\d{1,4}(?!\d)",  # PT000001 is a folder of DICOM media
    r"p\d{2,}(?![a-z0-9])",
    r"\d{3}_s_\d{4,5}",  # ADNI: site, S, person
    r"oas[12]_\d{4}|oas[34]\d{4}",  # OASIS
    r"ixi\d{3}",
    r"tcga[-_][a-z0-9]{2}[-_][a-z0-9]{4}",
    r"brats1[789]_[a-z0-9]+_[a-z0-9]+",
    r"brats(?:20)?(?:\d\d)?(?:[-_][a-z]+)*[-_]\d{3,5}",
    r"file_brain_[a-z0-9]+_\d{3}_(\d{7})",  # fastMRI
    r"(?:upenn-gbm|ucsf-pdgm|rhuh|remind|egd|acrin-[a-z]+-brain|burdenko-gbm|lgg|gbm)-\d{3,5}",
    r"c3[ln]-\d{5}",  # CPTAC
    r"ppmi_\d{4,}",
    r"cc\d{4}(?=_(?:philips|siemens|ge)_)",  # Calgary-Campinas
]
YEAR_FIRST = re.compile(rf"(?<![a-z0-9])(?:{_PERSON})[-_ .]*(?:19|20)\d\d[-_.]\d{{3,}}", re.I)  # PAT-2021-00017
ID_FORM = re.compile("|".join(rf"(?<![a-z0-9])(?:{form})" for form in ID_FORMS), re.I)
FAMILY = dict.fromkeys(["sub", "subj", "subject", "subjectid"], "sub")
FAMILY |= dict.fromkeys(["pat", "patient", "pt", "patientid", "pid"], "patient")

_MONTH = r"(?:jan|feb|mar|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[a-z]*"
_TIME = r"(?:[t _-]?\d\d[-_:.h]\d\d(?:[-_:.]\d\d(?:\.\d+)?)?|t?(?:[01]\d|2[0-3])[0-5]\d[0-5]\d)?"
DATE = re.compile(
    r"(?<!\d)(?:"
    rf"(?:19|20)\d\d[-_. ]?(?:0[1-9]|1[0-2])[-_. ]?(?:0[1-9]|[12]\d|3[01]){_TIME}"
    rf"|(?:19|20)\d\d[-_. ]{_MONTH}(?:[-_. ]\d\d?)?"
    r"|(?:19|20)\d\d[-_.](?:0[1-9]|1[0-2])"
    rf"|\d\d?[-_. ]\d\d?[-_. ](?:19|20)\d\d{_TIME}"
    rf"|(?:\d\d?[-_. ]?)?{_MONTH}[-_. ]?(?:\d\d?[-_., ]+)?(?:19|20)\d\d"
    r"|\d\d[-.]\d\d[-.]\d\d"
    r")(?!\d)",
    re.I,
)
YEAR = re.compile(r"(19|20)\d\d")
PERHAPS_DATE = re.compile(r"(19|20)\d\d|\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])|([0-2]\d|3[01])(0[1-9]|1[0-2])\d\d")
SCANNER = re.compile(
    r"(?:siemens|philips|ge|prisma|skyra|trio|verio|avanto|aera|signa|achieva|ingenia|vida)?"
    r"(?<![\d.])(?:0[.,]\d+|1[.,]5|15|[37](?:[.,]0)?)T(?![a-z0-9])",
    re.I,
)
UID = re.compile(r"\d+(\.\d+){4,}")

# Time points and runs. A number that follows belongs to them.
_VISITS = sorted(_set(
    "ses sess session visit vis study timepoint tp time week wk weeks month mon mo months day days year yr years fu bl "
    "followup baseline screening screen run scan rescan retest exam exp experiment acq rec series ser echo repeat rep "
    "stage phase"
))  # fmt: skip
VISIT = re.compile(
    rf"(?:{'|'.join(_VISITS)}|mr|[vtmwdy])\d+[a-z]?|(?:{'|'.join(_VISITS)}|first|second|third|last|before|after|early|"
    r"late|pre|post|preop|postop|intraop|op|preoperative|postoperative|followups|follow|up|relapse|recurrence|prior|"
    r"current|initial|final|pretreatment|posttreatment|treatment|surgery|therapy)|\d+(?:st|nd|rd|th)"
    r"|\d+(?:m|mo|mon|months?|w|wks?|weeks?|d|days?|y|yrs?|years?)"
)
_SURE_VISIT = re.compile(r"(ses|session|visit|timepoint|tp)\d*|\d+(st|nd|rd|th)")
# What counts pieces of a scan or of a collection. A number that follows belongs to it.
COUNTED = _set(
    "img im image imgs slice slices sl frame scan series volume vol batch shard chunk part fold split st se pa tensor "
    "array stack"
)
PLAIN = _set(
    "images pictures picture pic photo files file data dataset datasets raw rawdata sourcedata nifti niftis nii dicom "
    "dicoms dcm png jpg jpeg tif tiff npy pt tensors volumes scans mri mr mris brain head anat anatomical anatomy "
    "structural train training val valid validation test testing all orig original originals preprocessed processed "
    "preproc prep n4 bfc bias corrected biascorrected reg registered coreg mni mni152 skullstripped stripped skull "
    "strip bet norm normalized normalised resampled native space mask masks seg segmentation label labels gt lesion "
    "lesions roi patients subjects people cases participants persons export exports archive download downloads axial "
    "ax tra trans transversal sag sagittal cor coronal 2d 3d 4d tse fse se gre ge gr ir spgr flash tfl vibe bravo "
    "fspgr mpr space cube iso mm tirm dark fluid fs fatsat dwi adc dti swi loc localizer scout survey t2star star "
    "siemens philips prisma skyra trio verio avanto aera signa achieva ingenia the of and with w o "
    "weighted contrast copy anon anonymized anonymised deidentified defaced deface acpc"
)
CLASSES = _set(
    "ad cn mci emci lmci smc scd nc hc control controls healthy normal abnormal tumor tumour tumors tumours notumor "
    "notumour glioma gliomas meningioma meningiomas pituitary glioblastoma gbm hgg lgg astrocytoma oligodendroglioma "
    "metastasis metastases ms rrms spms ppms cis stroke ischemic haemorrhage hemorrhage dementia demented nondemented "
    "mild moderate severe very positive negative pos neg yes no none non benign malignant male female low high "
    "alzheimer alzheimers parkinson parkinsons epilepsy schizophrenia adhd asd autism pathology pathological "
    "disease diseased"
)
_GROUP = {"grade", "type", "class", "group", "category", "cluster", "cat"}
SITE = re.compile(
    r"(site|center|centre|hospital|clinic|institute|institution|scanner|cohort)([-_ ]?[a-z0-9]{1,6})?|ds\d{3,6}", re.I
)
SITE_IN_NAME = re.compile(r"(?<![a-z0-9])(?:site|center|centre|hospital)[-_ ]?(?:[a-z]|\d{1,3})(?![a-z0-9])", re.I)
SUFFIX = re.compile(r"\.(nii(\.gz)?|dcm|ima|png|jpe?g|tiff?|npy|pt)$", re.I)


@dataclass(frozen=True)
class Name:
    """What the name of one file or folder tells.

    ids: the parts of a form that is known to name a person, as written. words: what is left without visits, dates,
    contrasts and the like. text: the same as written. role: of a folder that is a class or a site, not a person.
    """

    ids: tuple[str, ...]
    words: Words
    text: str
    role: Literal["", "class", "site"] = ""


@lru_cache(2**16)
def read_name(name: str, classes: tuple[str, ...] = (), *, strict: bool = True) -> Name:
    """One folder or file (without its path). strict: leave out what may count scans or visits, such as scan7 or m12."""
    name = SUFFIX.sub("", name)
    ids = tuple(dict.fromkeys(match[0] for match in ID_FORM.finditer(name)))
    if name in classes:
        return Name(ids, (), "", "class")
    if SITE.fullmatch(name):
        return Name(ids, (), name, "site")
    kept, after_counter = [], False
    for chunk in re.split(r"[\W_]+", DATE.sub(" ", SCANNER.sub(" ", UID.sub(" ", name)) if strict else name)):
        word = chunk.casefold()
        letters = word.rstrip("0123456789")
        if not word or is_contrast_word(word) or (after_counter and word.isdecimal()):
            continue
        after_counter = bool((VISIT if strict else _SURE_VISIT).fullmatch(word)) or (strict and letters in COUNTED)
        if after_counter or word in PLAIN:
            continue
        kept.append(word[len(letters) :] if letters in PLAIN else chunk)  # of training01 the number alone
    return Name(ids, canonical("_".join(kept)), "_".join(kept), "class" if _is_class(kept) else "")


def canonical(text: str) -> Words:
    """Words and numbers of a name: case, separators and leading zeros make no other person."""
    parts = re.findall(r"\d+|[^\W\d_]+", text.casefold())
    return tuple(int(part) if part.isdecimal() and len(part) < 40 else part for part in parts)


def id_words(text: str) -> Words:
    """The same of an id of a known form: `subj_01`, `Subject1` and `sub-01` are one."""
    match = ID_FORM.fullmatch(text)
    inner = next((group for group in match.groups() if group), None) if match else None
    words = canonical(("sub " if text.casefold().startswith("sub-") else "") + (inner or text))
    return (FAMILY.get(words[0], words[0]), *words[1:]) if words else ()


def _is_class(chunks: list[str]) -> bool:
    words = [chunk.casefold() for chunk in chunks]
    if not words or all(word in CLASSES for word in words):
        return bool(words)
    return words[0].rstrip("0123456789") in _GROUP and all(word.isdecimal() for word in words[1:])
