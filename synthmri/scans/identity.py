"""Whose a scan is: all evidence of headers, folders and file names joined, and what remains in doubt.

A wrong answer puts a person on both sides of the split, so that where evidence conflicts two names are rather taken for
one person, and whatever is a guess is said. Pseudonyms are what outputs hold.
"""

import hashlib
import hmac
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from synthmri.scans.names import (
    CLASSES,
    ID_FORM,
    PERHAPS_DATE,
    SITE_IN_NAME,
    YEAR,
    YEAR_FIRST,
    Name,
    Words,
    canonical,
    id_words,
    read_name,
)  # fmt: skip

LEAST_PEOPLE = 3  # fewer folders of pictures without a word for a person are no people: a split wants three
MOST_VISITS = 12  # that are numbered from 0 or 1 on
# What de-identification writes in place of an id.
_NO_ID = re.compile(
    r"(anon\w*|unknown|none|null|n/?a|de-?identified|removed|redacted|patient|subject|x+|0+|[-?. ]*)", re.I
)

GUESS = "whose it is was guessed from a name that may be a person, a visit, a site or a class"
NOBODY = "nothing tells whose it is: neighbours are split in blocks, and a person may be in two splits"
SPELLINGS = "this person is written in several ways"
JOINED = "two names that look like two people are tied by a header or a path: taken for one person"
SHARED_ID = "one PatientID is in the folders of several people: the folders are believed, not the PatientID"
ONE_IN_MANY = "one PatientID is in several folders that may be people: taken for one person"
MANY_IN_ONE = "a folder that may be a person holds several PatientIDs"
YEAR_OR_NUMBER = "a year and a number follow a word for a person: what looks like a year was taken for the person"
SAME_NUMBER = "the same number is below several sites or classes: taken for different people"


class Trace(NamedTuple):
    """What one source tells. name: path below the root. kind: as in `Source`. patient: PatientID, or ""."""

    name: str
    kind: str
    patient: str = ""


class Whose(NamedTuple):
    """person: None where nothing tells. doubts: of the sentences above. names: all that the person is known by."""

    person: str | None
    doubts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class _Evidence(NamedTuple):
    """keys: who it is, by each thing that tells, and as written. header: the key of a PatientID that counts."""

    keys: dict[Words, str]
    doubts: tuple[str, ...] = ()
    header: Words | None = None


def people(traces: Sequence[Trace], classes: tuple[str, ...] = (), *, root: str = "") -> list[Whose]:
    """The person of each source.

    classes: folders that are labels, not people. root: name of the root, the one person of volumes whose names tell of
    visits and contrasts alone. An id of a known form (sub-01, patient_1, OAS1_0001, ...) and PatientID are certain
    where they agree; other names are guesses, by what varies below what.
    """
    parsed = [_parse(trace, classes) for trace in traces]
    evidence = _by_ids(traces, parsed)
    for pool in (("nifti", "dicom"), ("picture", "tensor")):
        rest = [n for n, trace in enumerate(traces) if not evidence[n].keys and trace.kind in pool]
        for n, found in zip(rest, _guess([traces[n] for n in rest], classes, root), strict=True):
            evidence[n] = found
    return _joined(evidence)


class _Parsed(NamedTuple):
    folders: list[Name]
    file: Name


def _parse(trace: Trace, classes: tuple[str, ...], *, strict: bool = True) -> _Parsed:
    path = PurePosixPath(trace.name)
    folders = [read_name(part, classes, strict=strict) for part in path.parts[:-1]]
    return _Parsed(folders, read_name(path.name, strict=strict))


def _by_ids(traces: Sequence[Trace], parsed: list[_Parsed]) -> list[_Evidence]:
    """What ids of a known form and PatientIDs tell."""
    named = [_ids(trace, found) for trace, found in zip(traces, parsed, strict=True)]
    headers = [_patient(trace.patient) for trace in traces]
    sites = [_site(found) for found in parsed]
    below = defaultdict(set)
    for site, keys in zip(sites, named, strict=True):
        for key in keys:
            below[key].add(site)
    shared = _shared_ids(headers, named, parsed)
    alone, unclear = _alone(headers, parsed)
    evidence = []
    for trace, keys, header, site in zip(traces, named, headers, sites, strict=True):
        doubts = [YEAR_OR_NUMBER] if YEAR_FIRST.search(trace.name) or YEAR_FIRST.search(trace.patient) else []
        if any(len(below[key]) > 1 and "" not in below[key] for key in keys):
            keys = {(*canonical(site), *key): f"{site}/{text}" for key, text in keys.items()}
            doubts.append(SAME_NUMBER)
        if header and header[0] in shared:
            doubts += [SHARED_ID] if keys else []
            header = None
        elif header:
            doubts += [] if keys else unclear[header[0]]
            keys = {header[0]: header[1]} | keys
            keys |= {words: text for words, text in alone.get(header[0], {}).items() if words not in keys}
        evidence.append(_Evidence(keys, tuple(doubts), header and header[0]))
    return evidence


def _ids(trace: Trace, found: _Parsed) -> dict[Words, str]:
    """Words -> text of the ids of a known form in a path."""
    texts = [text for part in found.folders for text in part.ids]
    whole = PurePosixPath(trace.name).stem  # p012.png is a page, not a person
    if trace.kind != "dicom":
        texts += [
            text for text in found.file.ids if not (trace.kind == "picture" and text == whole and text[1:].isdecimal())
        ]
    return {id_words(text): text for text in texts}


def _patient(text: str) -> tuple[Words, str] | None:
    """PatientID less visits, and as written; None where it is none."""
    text = text.strip()
    if _NO_ID.fullmatch(text):
        return None
    if match := ID_FORM.search(text):
        return id_words(match[0]), match[0]
    name = read_name(text)
    return (name.words, text) if name.words else (canonical(text) or (text,), text)


def _shared_ids(headers: list, named: list[dict], parsed: list[_Parsed]) -> set[Words]:
    """The PatientIDs that are no person's: they stand in the folders of several people, as the code of a site does.

    One person's two folders are no reason: there are to be half as many people again in the folders as in the headers.
    Where the folders have no ids of a known form, any name counts, but only if the headers name too few for a split.
    """
    folders, others = defaultdict(set), defaultdict(set)
    for header, keys, found in zip(headers, named, parsed, strict=True):
        if header:
            folders[header[0]] |= {next(iter(keys))} if keys else set()
            others[header[0]] |= {part.words for part in _no_years(found)[:1]}
    names = set().union(*folders.values())
    if not names and len(others) < LEAST_PEOPLE <= len(set().union(*others.values())):
        names, folders = set().union(*others.values()), others
    if len(names) < 1.5 * len(folders):
        return set()
    return {words for words in folders if words not in names}


def _guesses(found: _Parsed) -> list[Name]:
    """The folders that may name a person, from the top."""
    return [part for part in found.folders if part.words and not part.role]


def _no_years(found: _Parsed) -> list[Name]:
    return [part for part in _guesses(found) if not (len(part.words) == 1 and YEAR.fullmatch(str(part.words[0])))]


def _alone(headers: list, parsed: list[_Parsed]) -> tuple[dict[Words, dict[Words, str]], dict[Words, list[str]]]:
    """PatientID -> the folders that are its own, by which NIfTI made of its DICOM are known; and what is doubtful.

    A folder is its own that holds no other PatientID, or, of many folders with a few each, that is a person's whom each
    visit gave a new one.
    """
    holds, texts, tops = defaultdict(set), {}, defaultdict(set)
    for header, found in zip(headers, parsed, strict=True):
        parts = _no_years(found) if header else []
        for part in parts:
            number = len(part.words) == 1 and isinstance(part.words[0], int) and part.words[0] < 100  # of a series
            if not number:
                holds[part.words].add(header[0])
                texts[part.words] = part.text
        if parts:
            tops[parts[0].words].add(header[0])
    ids = _children_are_visits({(top, words) for top, inside in tops.items() for words in inside})
    own, doubts, seen = defaultdict(dict), defaultdict(list), Counter()
    for inside in tops.values():
        seen.update(inside)
        for words in inside if len(inside) > 1 and len(tops) > 1 else ():
            doubts[words].append(MANY_IN_ONE)
    for words, count in seen.items():
        doubts[words] += [ONE_IN_MANY] if count > 1 else []
    for words, inside in holds.items():
        if len(inside) == 1 or (ids and words in tops):
            for header in inside:
                own[header][words] = texts[words]
    return own, doubts


def _site(found: _Parsed) -> str:
    """The sites that a path names, as folders or within a name such as Center_01_Patient_02."""
    within = [SITE_IN_NAME.search(part.text) for part in (*found.folders, found.file) if part.role != "site"]
    sites = [part.text for part in found.folders if part.role == "site"] + [match[0] for match in within if match]
    return "/".join(dict.fromkeys(sites))


# Guesses --------------------------------------------------------------------------------------------------------------


def _guess(traces: list[Trace], classes: tuple[str, ...], root: str) -> list[_Evidence]:
    """By the names alone, none of which is an id of a known form."""
    pictures = any(trace.kind in ("picture", "tensor") for trace in traces)
    names = [_candidates(trace, classes, strict=True) for trace in traces]
    if not pictures:  # a volume that has no other name than scan7 or m12 is taken by it
        loose = [_candidates(trace, classes, strict=False) for trace in traces]
        names = [strict or free for strict, free in zip(names, loose, strict=True)]
    levels = _level_of_people([[part.words for part in parts] for parts in names])
    chosen = [parts[level] if parts else None for parts, level in zip(names, levels, strict=True)]
    cut = _without_visits({part.words for part in chosen if part})
    keys = [cut[part.words] if part else () for part in chosen]
    if pictures and _no_people(set(keys) - {()}):
        keys = [()] * len(keys)
    qualifiers = [_qualifier(trace, classes) for trace in traces]
    below = defaultdict(set)
    for key, qualifier in zip(keys, qualifiers, strict=True):
        below[key].add(qualifier)
    out = []
    for part, key, qualifier in zip(chosen, keys, qualifiers, strict=True):
        if not key:
            out.append(
                _Evidence({}, (NOBODY,)) if pictures else _Evidence({canonical(root) or (root,): root}, (GUESS,))
            )
        elif len(below[key]) > 1 and qualifier and any(isinstance(word, int) for word in key):
            text = f"{qualifier}/{part.text}"
            out.append(_Evidence({(*canonical(qualifier), *key): text}, (GUESS, SAME_NUMBER)))
        else:
            out.append(_Evidence({key: _written(part, key)}, (GUESS,)))
    return out


def _candidates(trace: Trace, classes: tuple[str, ...], *, strict: bool) -> list[Name]:
    """The folders and the file that may name a person, from the top."""
    folders, file = _parse(trace, classes, strict=strict)
    parts = _guesses(_Parsed(folders, file))
    if trace.kind in ("nifti", "tensor") and file.words:
        parts.append(file)
    if trace.kind == "picture" and not parts:  # P7_012.png: the last number is that of the slice
        words = file.words[:-1] if file.words and isinstance(file.words[-1], int) else ()
        if any(isinstance(word, int) for word in words):
            parts.append(Name((), words, re.sub(r"_?\d+$", "", file.text)))
    return parts


def _level_of_people(rows: list[list[Words]]) -> list[int]:
    """Which of the names of each path is the person: the deepest, unless what lies below a name are its visits."""
    depth = {tuple(row): len(row) - 1 for row in rows}
    for level in range(max(map(len, rows), default=0) - 1, 0, -1):
        ends = {row for row, last in depth.items() if last == level}
        if _children_are_visits({(row[level - 1], row[level]) for row in ends}):
            depth |= dict.fromkeys(ends, level - 1)
    return [depth[tuple(row)] for row in rows]


def _children_are_visits(pairs: set[tuple]) -> bool:
    """Whether what comes second are visits of what comes first; otherwise people, of a site or a collection.

    Visits have the same few names below many people. Names that are all different are visits only where they are
    fewer below each than there are parents.
    """
    if not pairs:
        return False
    parents, children = {parent for parent, _ in pairs}, {child for _, child in pairs}
    each = len(pairs) / len(parents)
    if len(parents) == 1:
        return len(children) == 1
    if len(children) == 1:
        return True
    if all(len(parent) == 1 and YEAR.fullmatch(str(parent[0])) for parent in parents):
        return False
    numbered = all(any(isinstance(word, int) for word in parent) for parent in parents)
    if numbered and not any(isinstance(word, int) for child in children for word in child):
        return True
    if all(map(_perhaps_date, children)):
        return True
    if len(children) < len(pairs):
        if len(parents) >= LEAST_PEOPLE and children <= {(number,) for number in range(MOST_VISITS + 1)}:
            return True
        return len(parents) > each or (numbered and each <= 3 * len(parents))
    return len(parents) >= 4 and len(parents) > each


def _perhaps_date(words: Words) -> bool:
    return len(words) == 1 and bool(PERHAPS_DATE.fullmatch(str(words[0])))


def _without_visits(names: set[Words]) -> dict[Words, Words]:
    """Each name up to the first number that differs among names of the same beginning: what follows counts visits.

    `x 1 11` and `x 1 21` are both `x 1` where there is an `x 2`; and `anna 1`, `anna 2` are `anna` where the same few
    numbers, or words, follow many names.
    """
    following = defaultdict(set)
    for name in names:
        for place, word in enumerate(name):
            if isinstance(word, int):
                following[name[:place]].add(word)

    def cut(name: Words) -> Words:
        for place, word in enumerate(name):
            if isinstance(word, int) and len(following[name[:place]]) > 1:
                return name[: place + 1]
        return name

    cuts = {name: cut(name) for name in names}
    pairs = {
        (short[:-1], short[-1:])
        for short in cuts.values()
        if len(short) > 1 and not all(word in CLASSES for word in short[:-1])
    }
    repeated = Counter(child for _, child in pairs)
    dates = all(map(_perhaps_date, repeated))
    if pairs and (dates or len(pairs) >= 1.5 * len(repeated)) and _children_are_visits(pairs):
        drop = {parent + child for parent, child in pairs if repeated[child] > 1 or isinstance(child[0], int)}
        cuts = {name: short[:-1] if short in drop else short for name, short in cuts.items()}
    return cuts


def _no_people(keys: set[Words]) -> bool:
    """Of pictures: too few names, or such as 1, 2 and 3, which are classes as likely."""
    return len(keys) < LEAST_PEOPLE or (
        len(keys) < 5 and all(len(key) == 1 and isinstance(key[0], int) for key in keys)
    )


def _qualifier(trace: Trace, classes: tuple[str, ...]) -> str:
    """The sites and classes above a name."""
    parts = PurePosixPath(trace.name).parts[:-1]
    return "/".join(part for part in parts if read_name(part, classes).role)


def _written(part: Name, key: Words) -> str:
    """As much of a name, as it is written, as its key holds."""
    ends = [end for end in range(1, len(part.text) + 1) if canonical(part.text[:end]) == key]
    return part.text[: max(ends)].rstrip("_") if ends else part.text


# All of it joined -----------------------------------------------------------------------------------------------------


def _joined(evidence: list[_Evidence]) -> list[Whose]:
    """One person for all whose keys are tied by any source."""
    root: dict[Words, Words] = {}

    def find(key: Words) -> Words:
        while root.setdefault(key, key) != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    for found in evidence:
        first, *others = [*found.keys] or [()]
        for other in others:
            root[find(other)] = find(first)
    names, headers = defaultdict(dict), defaultdict(set)
    for found in evidence:
        for key, text in found.keys.items():
            names[find(key)].setdefault(key, {})[text] = None
        if found.header:
            headers[find(found.header)].add(found.header)
    doubtful = {person: _conflicts(ways, headers[person]) for person, ways in names.items()}
    out = []
    for found in evidence:
        if not found.keys:
            out.append(Whose(None, found.doubts))
            continue
        person = find(next(iter(found.keys)))
        texts = tuple(text for written in names[person].values() for text in written)
        out.append(Whose(texts[0], tuple(dict.fromkeys([*found.doubts, *doubtful[person]])), texts))
    return out


def _conflicts(ways: dict[Words, dict[str, None]], headers: set[Words]) -> list[str]:
    """What is doubtful about one person who is known by these names, and by these of headers."""
    plain = [{re.sub(r"[\W_]+", "", text.casefold()) for text in written} for written in ways.values()]
    doubts = [SPELLINGS] if any(len(written) > 1 for written in plain) else []
    families = Counter(
        tuple(word for word in key if isinstance(word, str))
        for key, written in ways.items()
        if ID_FORM.fullmatch(next(iter(written)))
    )
    if len(headers) > 1 or any(count > 1 for count in families.values()):
        doubts.append(JOINED)
    return doubts


def pseudonym(subject: str, salt: str) -> str:
    """The name under which a subject appears in outputs: who does not know the salt cannot try ids one by one."""
    return f"sub-{hmac.new(salt.encode(), subject.encode(), hashlib.sha256).hexdigest()[:16]}"
