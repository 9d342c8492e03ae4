"""What a file is: an anatomical scan, or something else that lies beside scans, by its name, its header, its values.

Each function gives the reason to leave a file out, in a few words, or "" for a scan. Names are those that BIDS,
FreeSurfer, FSL, SPM, ANTs, nnU-Net, BraTS and scanners write; header elements go by their DICOM keywords, which the
sidecars of BIDS share.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from types import MappingProxyType

import numpy as np

# A name is looked at as its words, in lower case, between underscores: BrainMask_2.nii.gz -> _brain_mask_2_.
_ALWAYS = {
    "probability map": r"_(prob(s|seg|maps?|abilit\w*?)|[a-z]*posteriors?\d*|pve|softmax|tpm)_|_prob_$",
    "mask": r"_[a-z0-9]*(mask|msk)(s|inv)?\d*_|_rois?\d*_|_lesions?_$|_lesions?_(smooth|manual|rater|map)\w*_",
    "label map": r"_(gt|ground_?truth|truth|label(s|map|led)?|annot\w*?|contours?|consensus|ribbon|tissues?)_|"
    r"_(mixeltype|staple|segtri\w*?|gtv\w*?|[aw]?m?parc\w*?|parcellat\w*?|[a-z0-9]*seg(s|m|ment(s|ed|ations?)?)?\d*)_|_[lr]_[a-z]{4}_(first|corr)_|"
    r"_(wm|gm|csf|hypointensities|glm)_$|^_([lr]h_\w*|wm_\w*|filled)_$",
    "field map": r"_(field_?map(s|ping)?|fmap|b0_?map\w*?|b1_?map\w*?|phase_?diff|magnitude[12]|[tr]b1\w*|topup)_",
    "phase image": r"_part_(phase|imag)_|_(phase|pha?|phs|imaginary|imag)\d?_$|_pha_images?_",
    "subtraction": r"_(subtract(ed|ion|ions)|difference|minus|post_pre)_|[^_]_sub_$",
    "projection": r"_(\w?mips?\d*|m[in]+ip|max_?ip|min_?ip|projections?)_",
    "reformatted": r"_(mpr_(thick_)?range|reformat\w*?)_",
    "functional": r"_([a-z]*bold|sbref|[a-z]*fmri|func|task|resting|filtered_func\w*?)_",
    "diffusion": r"_([a-z]{0,4}dwi|dti|[de]?adc|apparent_diffusion\w*?|fractional_aniso\w*?|nodif|tracew|ep2d_diff)_|"
    r"_(hardi|noddi|ivim|colfa)_",
    "perfusion": r"_(p?c?asl|pasl|perfusion|m0scan|(r|rel_?)?cb[fv]|mtt|ktrans|pwi)_",
    "parameter map": r"_((t1|t2|t2s|t2star|r1|r2|r2s|r2star|pd|mt|mtr|m0|s0|mwf|chi|t1rho)_?map|chimap|qsm|mtr|mtsat)_",
    "statistic": r"_t_maps_|_(statmap|[a-z]*stat(s|map)?\d+|[ztf]_?stats?|[ztpf]_?map|spm_?[tf]_\d{4}|res_?ms)_|"
    r"_(var)?copes?\d*_|^_((beta|resi)_\d{4}|rpv|pe\d+)_$",
    "derivative": r"(?<!grad)_(\d*_?(inverse_?)?warp|warp_?field|(log_?)?jac(obian)?s?|deform\w*?|displacement\w*?)_|"
    r"_(bias_?field\w*?|bias|thickness|coeffs?|overlay|fus(ed|ion))_|^_sub_.*_desc_|^_(tpl|template)_|_mni152\w*_t1_\w*mm_",
    "scout": r"_(\w*?scout\w*?|locali[sz]\w*?|survey|(3|three)_?plane\w*?|topogram|smart_?brain)_",
    "screen save": r"_pos_?disp_|_(screen_?(sav|shot|grab|cap)\w*?|snap_?shots?|thumb(nail)?s?|mosaic|key_?images?)_",
}
# These words mean something else where the name tells of an anatomical contrast too (FLAIR ASSET, T1 SE isotropic).
_ELSE = {
    "label map": r"_(wmh|aal|glistr\w*?)_|_atlas_$",
    "other modality": r"_(ct|cta|ctp|cbct|ncct|pet|spect|fdg|suv\w*?|pib|av45|xray|dsa|us)_",
    "functional": r"_(rest|epi)_",
    "diffusion": r"_(trace|diff|diffusion|tensor|isotropic|average_dc|b\d{3,4})_|_(fa|md)_$|_fa_map_|_dti_\w+_$",
    "perfusion": r"_(perf|dsc|dce|ttp|tmax)_",
    "phase image": r"_phases?_",
    "angiography": r"_(tof|mra|mrv|pca|angio\w*?)_",
    "spectroscopy": r"_(mrsi?|svs|csi|spectro\w*?)_",
    "scout": r"^_loc_",
    "calibration": r"_(asset|calibration|cal|sense_ref\w*?|ref_?scan|coil\w*?|shim\w*?|prescan\w*?)_",
    "report": r"_(\w*?report|protocol|summary)_",
}
_ANATOMY = re.compile(r"_(t[12]\w*|\w*flair\w*|dark_fluid|pdw?|mp2?rage\w*|spgr|bravo|unit1)_")
_SCAN_OF_BIDS = re.compile(r"^sub-.*_(T[12]w|FLAIR|PDw?|PDT2|T2star|T2starw|UNIT1|inplaneT[12]|angio)$")
_DATATYPES = {
    "func": "functional", "dwi": "diffusion", "fmap": "field map", "perf": "perfusion", "mrs": "spectroscopy",
} | dict.fromkeys(("pet", "eeg", "ieeg", "meg", "nirs", "micr", "motion", "beh"), "other modality")  # fmt: skip
_TOOLS = re.compile(r"derivatives?|derived|(f|s)mriprep|mriqc|freesurfer|qsiprep|aslprep|xcp_d|.*\.(g?feat|ica)", re.I)
# A folder of labels has no other words than these: labelsTr, lesion_masks, gt_segmentations.
_LABELS = re.compile(r"(mask|label|seg|segm|segmentation|annotation|roi|parcellation|prediction)s?|msk|gt|truth")
_OF_LABELS = re.compile(r"tr|ts|val|train\w*|test\w*|validation|ground|manual|expert|binary|niftis?|nii|png")
_OF_MASKS = re.compile(r"lesions?|tumou?rs?|brain|tissue|flair|t[12]\w*")
# What programs put before (SPM, CAT12) or behind the name of the scan that they worked on.
_TISSUE = re.compile(r"(s?m?w?|r)(c[1-6]|p[0-7])", re.I)
_PREFIX = re.compile(r"s?w?r?m?i?|i?y_|u_|j_|wj_|biasfield_|lesion_?\w*", re.I)
_WORK = re.compile(
    r"brain|bet|skull|ss|strip(ped)?|\w*extract(ed|ion)|masked|\w*strip|hdbet|robex|optibet|bias\w*|(n[34]|bias)?corr\w*|"
    r"n[34]\w*|bfc|restored?|(z|min)?(norm|score)\w*|reg\w*|coreg\w*|align\w*|rigid|affine|(non)?lin|to|mni\w*|std|"
    r"standard|atlas|template|(inverse)?warped|inverse|resampl\w*|res|iso|\d+mm|crop\w*|denois\w*|smooth\w*|defaced?|"
    r"acpc|dc|fullfov|orig|preproc\w*|final|space.*|desc.*"
)
_FREESURFER = {"brain", "norm", "nu", "orig_nu", "nu_noneck", "brain.finalsurfs", "antsdn.brain", "rawavg", "orig"}

_CLASSES = {  # of SOP, below 1.2.840.10008.5.1.4.1.1.
    "4.2": "spectroscopy", "7": "screen save", "66.4": "label map", "66.5": "label map", "66.7": "label map",
    "481.3": "label map", "30": "parameter map", "11": "report", "88": "report", "104": "report", "66": "derivative",
    "67": "derivative", "481": "other modality",
}  # fmt: skip
_MODALITIES = {"SEG": "label map", "RTSTRUCT": "label map", "SR": "report", "PR": "report", "KO": "report"}
_TYPES = {  # values of ImageType, Frame Type or Complex Image Component
    "phase image": {"P", "PHASE", "PHASE MAP", "I", "IMAGINARY", "VELOCITY"},
    "diffusion": {"ADC", "EADC", "TRACE", "TRACEW", "FA", "COLFA", "TENSOR", "DIFFUSION", "DIFFUSION_ANISO", "DWI"},
    "functional": {"FMRI", "MOSAIC", "BOLD"},
    "perfusion": {"PERFUSION", "ASL", "RCBF", "RCBV", "CBF", "CBV", "MTT", "TTP", "TMAX", "PBP", "GBP", "KTRANS"}
    | {"RELCBF", "RELCBV", "RELMTT"},
    "subtraction": {"SUBTRACTION", "SUBTRACTED", "SUB"},
    "projection": {"MIP", "MNIP", "MINIP", "MIN_IP", "MAX_IP", "CSA MIP", "PROJECTION IMAGE", "PROJECTION"},
    "reformatted": {"MPR", "CSA MPR", "REFORMATTED", "CURVED MPR", "CPR"},
    "scout": {"LOCALIZER", "LOCALISER", "SURVEY", "SCOUT"},
    "field map": {"B0 MAP", "B0", "B1 MAP", "B1", "FIELD_MAP", "FIELD MAP"},
    "parameter map": {"T1 MAP", "T2 MAP", "T2_STAR MAP", "R1 MAP", "R2 MAP", "R2_STAR MAP", "PROTON_DENSITY MAP"},
    "statistic": {"T_TEST", "T TEST", "Z_MAP", "Z MAP", "CORRELATION MAP", "STDDEV", "STD_DEV", "SPM"},
    "screen save": {"SCREEN SAVE", "SCREENSAVE", "SCREEN_SAVE", "SCREENSHOT", "SCREEN SNAPSHOT", "CAPTURE"},
    "label map": {"SEGMENTATION", "MASK"},
    "derivative": {"OVERLAY", "FUSED", "FUSION"},
}

FEW = 8  # values: no scan has so few, a mask or a map of tissues has no more
SAMPLE = 2**16  # voxels that are looked at first


def left_out(name: str, head: Mapping = MappingProxyType({}), beside: Collection[str] = ()) -> str:
    """Why a file is left out, by its path below the root, its header, and the stems of the files in its folder.

    head: DICOM keyword -> value (SOPClassUID, Modality, ImageType, SeriesDescription ...), of NIfTI also intent_code,
    descrip and shape; whatever is absent tells nothing.
    """
    path = PurePosixPath(name)
    dicom = "SOPClassUID" in head
    told = words(str(head.get("SeriesDescription") or head.get("ProtocolName") or ""))
    plain = not _ANATOMY.search(told if dicom else words(path.name))  # so that the folder is asked
    return (
        _by_header(head)
        or _by_folders(path.parts[:-1])
        or ("" if dicom else _by_stem(stem(path.name), beside, volume=".nii" in path.name.lower()))
        or _by_words(told)
        or ("subtraction" if re.match(r"_sub_(?!\d)", told) else "")
        or ("reformatted" if dicom and plain and "_mpr_" in told else "")
        or (_whole(path.parent.name) if plain and not (dicom and len(told) > 1) else "")
    )


def stem(name: str) -> str:
    """The name of a file less the suffix of its format."""
    return re.sub(r"\.(nii(\.gz)?|dcm|ima|png|jpe?g|tiff?|npy|pt)$", "", name, flags=re.I)


def words(text: str) -> str:
    """The words of a name in lower case, between underscores."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", text).replace("*", "star")
    return re.sub(r"[^a-z0-9]+", "_", f"_{apart.lower()}_")


def _by_words(text: str) -> str:
    for tables in (_ALWAYS, {} if _ANATOMY.search(text) else _ELSE):
        for reason, pattern in tables.items():
            if re.search(pattern, text):
                return reason
    return ""


def _whole(folder: str) -> str:
    """Of a folder whose whole name says what is in it, such as ADC, CT or localizer; `lesion` or `atlas` may not."""
    text = words(folder)
    for reason, pattern in [*_ALWAYS.items(), *_ELSE.items()]:
        if reason not in ("mask", "label map") and re.fullmatch(f"({pattern})", text):
            return reason
    return ""


def _by_folders(folders: tuple[str, ...]) -> str:
    person = next((index for index, folder in enumerate(folders) if folder.startswith("sub-")), None)
    for index, folder in enumerate(folders):
        if _TOOLS.fullmatch(folder):
            return "derivative"
        if person is not None and index > person and folder in _DATATYPES:
            return _DATATYPES[folder]
        parts = words(folder).strip("_").split("_")
        known = [part for part in parts if _LABELS.fullmatch(part)]
        others = [part for part in parts if part not in known and not _OF_LABELS.fullmatch(part)]
        # brain_segmentation may be the name of a collection, brain_masks is none
        masks = not any(part.startswith("segm") for part in known) and all(map(_OF_MASKS.fullmatch, others))
        if known and (masks or not others):
            return "mask" if any(part.startswith(("mask", "msk", "roi")) for part in known) else "label map"
    return ""


def _by_stem(name: str, beside: Collection[str], *, volume: bool) -> str:
    if volume and name in _FREESURFER and ({"T1", "orig"} - {name}) & set(beside):
        return "derivative"
    if volume:
        for cut in range(1, min(len(name), 14)):
            if name[cut:] in beside:
                if _TISSUE.fullmatch(name[:cut]):
                    return "probability map"
                if _PREFIX.fullmatch(name[:cut]):
                    return "derivative"
        if re.match("c[1-6]", name) and {f"c{tissue}{name[2:]}" for tissue in (1, 2, 3)} <= set(beside):
            return "probability map"
        if re.match(r"((s?m?w|r)c[1-6]|c[1-6](?=sub-)|(mw|r)p[1-3])[a-z]", name, re.I):
            return "probability map"
    if _SCAN_OF_BIDS.search(name) and "_part-" not in name and "_desc-" not in name:
        return "derivative" if re.sub(r"_(space|res|rec)-[A-Za-z0-9]+", "", name) in set(beside) - {name} else ""
    return _by_words(words(name)) or _worked_on(name, beside)


def _worked_on(name: str, beside: Collection[str]) -> str:
    """T1_brain beside T1 is the same scan again."""
    for part in re.finditer(r"[^A-Za-z0-9]+", name):
        for whole, rest in ((name[: part.start()], name[part.end() :]), (name[part.end() :], name[: part.start()])):
            if whole in beside and all(_WORK.fullmatch(word) for word in words(rest).strip("_").split("_")):
                return "derivative"
    return ""


def _by_header(head: Mapping) -> str:
    uid = str(head.get("SOPClassUID") or "").removeprefix("1.2.840.10008.5.1.4.1.1.")
    modality = str(head.get("Modality") or "").upper()
    kinds = head.get("ImageType") or ()
    kinds = {str(value).strip().upper() for value in ([kinds] if isinstance(kinds, str) else kinds)}
    kinds.add(str(head.get("ComplexImageComponent") or "").upper())
    placed = modality == "MR" and head.get("ImagePositionPatient") is not None  # a scan that was saved a second time
    if (reason := _CLASSES.get(uid) or _CLASSES.get(uid.split(".")[0])) and not (reason == "screen save" and placed):
        return reason
    if modality not in ("", "MR", "OT"):
        return _MODALITIES.get(modality, "other modality")
    for reason, values in _TYPES.items():
        if kinds & values:
            return reason
    if len(head.get("shape") or ()) > 4:
        return "derivative"  # a field of vectors
    code, told = int(head.get("intent_code") or 0), str(head.get("descrip") or "")
    if code == 1002:
        return "label map"
    if 2 <= code <= 24 or re.match(r"SPM\{|spm_spm|.*(contrast|beta) (\(?\d|-)", told, re.I):
        return "statistic"
    if code in (1005, 1006, 1007):
        return "derivative"
    return "probability map" if "tissue class" in told.lower() else ""


def left_out_by_values(data: np.ndarray) -> str:
    """Why a volume, a picture or a stack is left out by its finite values, of any shape: masks and maps of labels have
    few values, or large fields of one; a phase fills -pi to pi. What has one value only is not judged."""
    step = max(1, int((data.size / SAMPLE) ** (1 / data.ndim)))
    some = data[(slice(None, None, step),) * data.ndim].ravel()
    found = np.unique(some)
    if len(found) <= FEW:  # of a small mask the sample may miss the few voxels that matter
        found = np.unique(data)
    if len(found) < 2:
        return ""
    if len(found) <= FEW:
        return "mask" if len(found) == 2 else "label map"
    lo, hi = float(data.min()), float(data.max())
    for turn in (np.pi, 4096.0):
        if -1.001 * turn <= lo < -0.97 * turn and 0.97 * turn < hi <= 1.001 * turn and 0.2 < (some < 0).mean() < 0.8:
            return "phase image"
    # A mask that was resampled or saved as JPEG has some values between; a probability is mostly certain.
    ground = _most_common(some, lo, hi)
    bright = some[np.abs(some - ground) > 0.05 * (hi - lo)]
    if len(bright) > 16:
        top = hi if hi - ground > ground - lo else lo
        certain = float((np.abs(bright - top) <= 0.02 * (hi - lo)).mean())
        if certain > 0.9:
            return "mask"
        if certain > 0.3 and lo == 0 and hi <= 1.01 and ground < 0.05:
            return "probability map"
    return "label map" if _patchy(data) else ""


def _most_common(values: np.ndarray, lo: float, hi: float) -> float:
    """The middle of the fullest of 64 bins: the background, mostly."""
    counts, edges = np.histogram(values, bins=64, range=(lo, hi))
    return float(edges[counts.argmax() : counts.argmax() + 2].mean())


def _patchy(data: np.ndarray) -> bool:
    """Whether most voxels off the background (the value of the corner) are integers that their neighbours share."""
    # Some slices from the middle are enough, and a picture is one.
    planes = data if data.ndim == 2 else data[len(data) // 4 : 3 * len(data) // 4 + 1 : max(1, len(data) // 16)]
    inside = planes[..., 1:, 1:] != planes.reshape(-1)[0]
    if inside.sum() < 64:
        return False
    values = planes[..., 1:, 1:]
    same = (values == planes[..., :-1, 1:]) & (values == planes[..., 1:, :-1])
    return bool(same[inside].mean() > 0.6 and (values[inside] == np.rint(values[inside])).all())
