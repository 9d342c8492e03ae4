"""Run a blinded reader study of real and synthetic slices: `synthmri study --help`."""

import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from reader_study import design, imrmc, packet, ratings, store
from stages import _cli, _files, _secrets
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.reporting import comparison

Home = Annotated[Path, typer.Option(help="folder of packets, keys and databases")]
Name = Annotated[str, typer.Option("--packet", help="its name, where there are several")]
Table = Annotated[Path | None, typer.Option(help="CSV for git; of itself ratings.csv or choices.csv, by the design")]
LOOPBACK = ("127.0.0.1", "localhost")
HOME = Path("data/reader_study")
TABLES = {"rating": HOME / "ratings.csv", "forced_choice": HOME / "choices.csv"}  # of each design, for git


def create(
    test: Annotated[Path, typer.Option(help="ImageSet of the test slices")] = Path("data/slices/test"),
    samples: Annotated[Path, typer.Option(help="folder of each model's ImageSet")] = Path("data/samples"),
    home: Home = HOME,
) -> None:
    """Choose and freeze the images (section `study`), and say what difference the study can show."""
    p = params.read(_cli.PARAMS, "study", design.Study)
    real = imageset.read(test)
    models = {name: imageset.read(samples / name) for name in comparison.MODELS}
    items = design.choose(real, models, p)
    images = design.pictures(items, real, models)
    simulated = real.meta.get("data", {}).get("source") == "simulated"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".") as part:
        folder, key = Path(part) / "packet", Path(part) / "key.csv"
        name = packet.write(
            folder, key, items, images, p, secret=_secrets.secret(home / ".secret"), simulated=simulated
        )
        target, target_key = home / f"packet-{name}", home / f"key-{name}.csv"
        if not target.exists():
            key.replace(target_key)
            folder.replace(target)  # last: a packet that is there is whole
    shown = len(design.order(items, p, 0, 0))
    what = f"{p.cases} of each of {1 + len(models)} sources"
    if p.design == "forced_choice":
        what = f"in pairs, {p.cases} of each of {len(models)} models"
    print(f"{target}: {len(items)} images, {what}, {p.controls} controls; {shown} to rate by each rater")
    print(f"{target_key}: what they are; keep it from the raters")
    for model, (same, gap) in design.mismatch(items).items():
        level = "" if np.isnan(gap) else f", level {gap:.0f} mm from it on average"
        print(f"  {model}: {100 * same:.0f} % of the contrast of their real slice{level}")
    if simulated:
        print("a rehearsal: the real slices are of simulated people; set data.source to raw for a study of real scans")
    _say_power(p, len(models))


def _say_power(p: design.Study, models: int) -> None:
    pairs = p.design == "forced_choice"
    found = design.detectable_proportion(p, models) if pairs else design.detectable_difference(p, models)
    if found is None:
        print(f"power: {p.cases} cases can show no difference for {models} models; raise study.cases")
    elif pairs:
        print(
            f"power: that most raters find the real one in {100 * found:.0f} % of the pairs is told from guessing in 4 "
            "of 5 studies"
        )
    else:
        print(
            f"power: {p.raters} raters find a mean difference from real of {found:.2f} points in 4 of 5 studies, if "
            f"images spread by {design.CASE_SD:g} and ratings of one image by {design.RATER_SD:g} (assumed)"
        )


def serve(
    host: Annotated[str, typer.Option(help="IPv4 address to listen on; any but loopback is open to the network")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 takes any that is free", min=0, max=65535)] = 8642,
    name: Annotated[list[str] | None, typer.Option(help="name or address under which tablets open the page")] = None,
    packet_name: Name = "",
    home: Home = HOME,
) -> None:
    """Serve the page, and print each rater's own link. End with Ctrl-C; nothing is lost."""
    import uvicorn

    from reader_study import app

    if host == "0.0.0.0" and not name:
        raise UserError("--host 0.0.0.0 needs --name: the address by which tablets reach this machine, for the links")
    names = name or [host]
    opened, db = _open(home, packet_name)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # the links below work at once
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port} ({error.strerror}); choose another --port") from None
    if host not in LOOPBACK:
        print(f"warning: {host} is open to the network and the links travel unencrypted", file=sys.stderr)
    print(f"packet {opened.hash}. One link for each rater; it is their password, and takes up where they stopped:")
    for row in db.raters():
        total = len(opened.orders[row["slot"]])
        who = f"{row['pseudonym']}, {row['done']} of {total}" if row["pseudonym"] else "not signed in yet"
        print(f"  http://{names[0]}:{listener.getsockname()[1]}/r/{row['token']}/   ({who})")
    print("Ctrl-C ends it.", flush=True)
    config = uvicorn.Config(
        app.create(opened, db, [*LOOPBACK, *names]),
        access_log=False,
        server_header=False,
        log_level="warning",
        limit_concurrency=400,
    )
    uvicorn.Server(config).run(sockets=[listener])


def export(out: Table = None, packet_name: Name = "", home: Home = HOME) -> None:
    """Add the ratings of a packet to a CSV that names each image's source: the end of blinding for who reads it."""
    opened, db = _open(home, packet_name)
    out = out or TABLES[opened.design]
    key = packet.read_key(home / f"key-{opened.hash}.csv", opened)
    rows = db.ratings()
    for rater in db.raters():
        total = len(opened.orders[rater["slot"]])
        if 0 < rater["done"] < total:
            print(
                f"{rater['pseudonym']} has rated {rater['done']} of {total}, and must not see {out} before the end",
                file=sys.stderr,
            )
    frame = pd.DataFrame(
        [
            row
            | _shown(row["image"], key)
            | {
                "packet": opened.hash,
                "reader": f"{row['pseudonym']}.{row['id']}",
                "repeat": int(opened.orders[row["slot"]][row["position"]][1]),
                "seconds": f"{row['seconds']:.1f}",
                "comment": _harmless(row["comment"]),
            }
            for row in rows
        ],
        columns=ratings.COLUMNS[opened.design],
    )
    # This database alone knows what its raters have withdrawn, so their rows are taken from here.
    others = ratings.read(out, opened.design) if out.exists() else frame[:0]
    mine = {f"{row['pseudonym']}.{row['id']}" for row in db.raters()}
    _write(out, [frame, others[(others["packet"] != opened.hash) | ~others["reader"].isin(mine)]])


def merge(
    files: Annotated[list[Path], typer.Argument(help="CSVs of ratings")],
    out: Table = None,
) -> None:
    """Join exports of several people with what is there; a rating that is in two of them counts once."""
    frames = [ratings.read(file) for file in files]
    kind = next(design for design, columns in ratings.COLUMNS.items() if tuple(frames[0].columns) == columns)
    out = out or TABLES[kind]
    _write(out, frames + ([ratings.read(out, kind)] if out.exists() else []))


def to_imrmc(
    out: Annotated[Path, typer.Argument(help="file to write: .imrmc for the program, .csv for its R package")],
    table: Annotated[Path, typer.Option(help="CSV from `export`: ratings.csv or choices.csv")] = TABLES["rating"],
) -> None:
    """Write what was exported as input of iMRMC, for an analysis of several raters and cases by other software."""
    if out.suffix not in (".imrmc", ".csv"):
        raise UserError(f"{out} is no .imrmc and no .csv; name one, for the program or for its R package")
    frame = ratings.read(table)
    if not len(frame):
        raise UserError(f"{table} holds no answers yet; `synthmri study export` brings them there")
    rows = imrmc.rows(frame)
    with _files.replacing(out) as part:
        part.write_text(imrmc.text(rows, header=out.suffix == ".imrmc"), encoding="utf-8")
    print(f"{out}: {len(rows)} rows of {rows['modalityID'].nunique() - 1} models against real slices")


def _shown(name: str, key: pd.DataFrame) -> dict:
    """What an image was, or a pair: of the one that is not real, and which side the real one was on."""
    names = name.split("-")
    asked = names[0] if len(names) == 1 or key["source"][names[0]] != design.REAL else names[1]
    one = {"sha256": key["sha256"][asked], "source": key["source"][asked], "case": int(key["case"][asked])}
    if len(names) == 1:
        return one
    real = names[0] if asked == names[1] else names[1]
    return one | {"sha256_real": key["sha256"][real], "real": ("left", "right")[names.index(real)]}


def _open(home: Path, name: str) -> tuple[packet.Packet, store.Store]:
    opened = packet.read(packet.find(home, name))
    database = store.Store(home / f"ratings-{opened.hash}.db", opened.hash, len(opened.orders), opened.design)
    for file in (database.path, home / f"key-{opened.hash}.csv"):
        if file.exists():  # the key may be elsewhere, away from the raters
            _secrets.warn_if_open(file)
    return opened, database


def _write(out: Path, frames: list[pd.DataFrame]) -> None:
    merged = ratings.merge(frames)
    with _files.replacing(out) as part:
        ratings.write(part, merged)
    print(f"{out}: {len(merged)} ratings of {merged['reader'].nunique()} raters; `dvc repro` scores them")


def _harmless(comment: str) -> str:
    """A comment that a spreadsheet does not take for a formula."""
    return f"'{comment}" if comment.startswith(("=", "+", "-", "@")) else comment


COMMANDS = (create, serve, export, merge, to_imrmc)

if __name__ == "__main__":
    _cli.run(*COMMANDS)
