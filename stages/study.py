"""Run a blinded reader study of real and synthetic slices: `synthmri study --help`."""

import socket
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from reader_study import design, packet, ratings, store
from stages import _cli, _files
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.reporting import comparison

Home = Annotated[Path, typer.Option(help="folder of packets, keys and databases")]
Name = Annotated[str, typer.Option("--packet", help="its name, where there are several")]
Table = Annotated[Path, typer.Option(help="CSV of ratings, for git")]
LOOPBACK = ("127.0.0.1", "localhost")
HOME = Path("data/reader_study")
RATINGS = HOME / "ratings.csv"


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
    sets = {ratings.REAL: real, **models}
    images = [np.asarray(sets[item.source].images[item.row]) for item in items]
    simulated = real.meta.get("data", {}).get("source") == "simulated"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".") as part:
        folder, key = Path(part) / "packet", Path(part) / "key.csv"
        name = packet.write(folder, key, items, images, p, secret=_files.secret(home / ".secret"), simulated=simulated)
        target, target_key = home / f"packet-{name}", home / f"key-{name}.csv"
        if not target.exists():
            key.replace(target_key)
            folder.replace(target)  # last: a packet that is there is whole
    shown = len(items) + len(sets) * design.repeats_of_a_source(p)
    print(f"{target}: {len(items)} images, {p.cases} of each of {len(sets)} sources; {shown} to rate by each reader")
    print(f"{target_key}: what they are; keep it from the readers")
    for model, (same, gap) in design.mismatch(items).items():
        level = "" if np.isnan(gap) else f", level {gap:.0f} mm from it on average"
        print(f"  {model}: {100 * same:.0f} % of the contrast of their real slice{level}")
    if simulated:
        print("a rehearsal: the real slices are of simulated people; set data.source to raw for a study of real scans")
    found = design.detectable_difference(p, len(models))
    if found is None:
        print(f"power: {p.cases} cases can show no difference for {len(models)} models; raise study.cases")
    else:
        print(
            f"power: {p.readers} readers find a mean difference from real of {found:.2f} points in 4 of 5 studies, if "
            f"images spread by {design.CASE_SD:g} and ratings of one image by {design.READER_SD:g} (assumed)"
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
    """Serve the page, and print each reader's own link. End with Ctrl-C; nothing is lost."""
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
    print(f"packet {opened.hash}. One link for each reader; it is their password, and takes up where they stopped:")
    for row in db.readers():
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


def export(out: Table = RATINGS, packet_name: Name = "", home: Home = HOME) -> None:
    """Add the ratings of a packet to a CSV that names each image's source: the end of blinding for who reads it."""
    opened, db = _open(home, packet_name)
    key = packet.read_key(home / f"key-{opened.hash}.csv", opened)
    rows = db.ratings()
    for reader in db.readers():
        total = len(opened.orders[reader["slot"]])
        if 0 < reader["done"] < total:
            print(
                f"{reader['pseudonym']} has rated {reader['done']} of {total}, and must not see {out} before the end",
                file=sys.stderr,
            )
    frame = pd.DataFrame(
        [
            row
            | {
                "packet": opened.hash,
                "reader": f"{row['pseudonym']}.{row['id']}",
                "repeat": int(opened.orders[row["slot"]][row["position"]][1]),
                "sha256": opened.hashes[row["image"]],
                "source": key["source"][row["image"]],
                "case": int(key["case"][row["image"]]),
                "seconds": f"{row['seconds']:.1f}",
                "comment": _harmless(row["comment"]),
            }
            for row in rows
        ],
        columns=ratings.COLUMNS,
    )
    # This database alone knows what its readers have withdrawn, so their rows are taken from here.
    others = ratings.read(out) if out.exists() else frame[:0]
    mine = {f"{row['pseudonym']}.{row['id']}" for row in db.readers()}
    _write(out, [frame, others[(others["packet"] != opened.hash) | ~others["reader"].isin(mine)]])


def merge(
    files: Annotated[list[Path], typer.Argument(help="CSVs of ratings")],
    out: Table = RATINGS,
) -> None:
    """Join exports of several people into one; a rating that is in two of them counts once."""
    _write(out, [ratings.read(file) for file in files])


def _open(home: Path, name: str) -> tuple[packet.Packet, store.Store]:
    opened = packet.read(packet.find(home, name))
    database = store.Store(home / f"ratings-{opened.hash}.db", opened.hash, len(opened.orders))
    for file in (database.path, home / f"key-{opened.hash}.csv"):
        if file.exists():  # the key may be elsewhere, away from the readers
            _files.warn_if_open(file)
    return opened, database


def _write(out: Path, frames: list[pd.DataFrame]) -> None:
    merged = ratings.merge(frames)
    with _files.replacing(out) as part:
        ratings.write(part, merged)
    print(f"{out}: {len(merged)} ratings of {merged['reader'].nunique()} readers; `dvc repro` scores them")


def _harmless(comment: str) -> str:
    """A comment that a spreadsheet does not take for a formula."""
    return f"'{comment}" if comment.startswith(("=", "+", "-", "@")) else comment


COMMANDS = (create, serve, export, merge)

if __name__ == "__main__":
    _cli.run(*COMMANDS)
