"""The ratings, or choices, of one packet in SQLite: one transaction a rating, on the disk before it is acknowledged.

Write-ahead log and synchronous=FULL: a kill or a power cut at any moment loses nothing that was acknowledged. Nothing
is overwritten or deleted: undoing marks a rating as withdrawn.
"""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthmri.errors import UserError

ANSWERS = {  # of each design: column -> its SQL type
    "rating": {
        "realism": "INTEGER NOT NULL CHECK (realism BETWEEN 1 AND 5)",
        "verdict": "TEXT NOT NULL CHECK (verdict IN ('real', 'synthetic'))",
        "plausibility": "INTEGER NOT NULL CHECK (plausibility BETWEEN 1 AND 5)",
        "seconds": "REAL NOT NULL",
        "tags": "TEXT NOT NULL",
        "comment": "TEXT NOT NULL",
    },
    "forced_choice": {
        "chosen": "TEXT NOT NULL CHECK (chosen IN ('left', 'right'))",
        "seconds": "REAL NOT NULL",
        "comment": "TEXT NOT NULL",
    },
}
SCHEMA = """
CREATE TABLE IF NOT EXISTS packet (hash TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS reader (
    slot INTEGER PRIMARY KEY,           -- whose order of the packet
    token TEXT NOT NULL UNIQUE,         -- in the rater's link
    id TEXT NOT NULL UNIQUE,            -- random, so that two databases never hold the same rater
    pseudonym TEXT UNIQUE COLLATE NOCASE
);
CREATE TABLE IF NOT EXISTS rating (
    slot INTEGER NOT NULL REFERENCES reader,
    position INTEGER NOT NULL,
    revision INTEGER NOT NULL,          -- how many were withdrawn at this position before
    withdrawn INTEGER NOT NULL DEFAULT 0,
    image TEXT NOT NULL,                -- or two, LEFT-RIGHT
    {answers},
    PRIMARY KEY (slot, position, revision)
);
CREATE UNIQUE INDEX IF NOT EXISTS standing ON rating (slot, position) WHERE NOT withdrawn;
"""


class Taken(Exception):
    """The pseudonym is another rater's, or the position has another rating."""


class Store:
    """The database at `path`, for the packet `packet` of a design with `raters` orders. Used from any thread."""

    def __init__(self, path: Path, packet: str, raters: int, design: str = "rating"):
        self.path = path
        self.answers = tuple(ANSWERS[design])
        path.touch(mode=0o600)  # before SQLite makes it for all to read; its log takes the mode of the database
        with self._transaction() as db:
            columns = ",\n    ".join(f"{name} {kind}" for name, kind in ANSWERS[design].items())
            for statement in SCHEMA.format(answers=columns).split(";\n"):
                db.execute(statement)
            db.execute("INSERT OR IGNORE INTO packet VALUES (?)", (packet,))
            if [row["hash"] for row in db.execute("SELECT hash FROM packet")] != [packet]:
                raise UserError(f"{path} holds the ratings of another packet than {packet}; use that packet's own file")
            for slot in range(raters):
                values = (slot, secrets.token_urlsafe(16), secrets.token_hex(3))
                db.execute("INSERT OR IGNORE INTO reader (slot, token, id) VALUES (?, ?, ?)", values)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            db.row_factory = sqlite3.Row
            yield db
        finally:
            db.close()  # without a COMMIT before it, this rolls back

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own that writes, committed at the end, rolled back on an error."""
        with self._connection() as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def _rows(self, query: str, *values) -> list[dict]:
        """What one SELECT gives. It takes no lock: whoever writes meanwhile does not wait for it, nor it for them."""
        with self._connection() as db:
            return [dict(row) for row in db.execute(query, values)]

    def raters(self) -> list[dict]:
        """slot, token, id, pseudonym (None before signing in) and number of ratings of each rater."""
        query = """SELECT reader.*, COUNT(rating.position) AS done FROM reader
                   LEFT JOIN rating ON rating.slot = reader.slot AND NOT withdrawn GROUP BY reader.slot"""
        return self._rows(query)

    def rater(self, token: str) -> dict | None:
        """The rater of a link, or None."""
        return next(iter(self._rows("SELECT * FROM reader WHERE token = ?", token)), None)

    def sign_in(self, slot: int, pseudonym: str) -> None:
        """Give a rater a pseudonym, whose first spelling stays. Raises Taken where it is another's or there is one."""
        with self._transaction() as db:
            try:
                changed = db.execute(
                    "UPDATE reader SET pseudonym = COALESCE(pseudonym, ?) WHERE slot = ? AND"
                    " (pseudonym IS NULL OR pseudonym = ?)",
                    (pseudonym, slot, pseudonym),
                ).rowcount
            except sqlite3.IntegrityError:
                raise Taken from None
        if not changed:
            raise Taken

    def add(self, slot: int, position: int, image: str, answers: dict) -> None:
        """Append a rating. The same one again is no error (its reply was lost); another one raises Taken."""
        with self._transaction() as db:
            standing = db.execute(
                "SELECT * FROM rating WHERE slot = ? AND position = ? AND NOT withdrawn", (slot, position)
            ).fetchone()
            if standing:
                if any(standing[name] != answers[name] for name in self.answers if name != "seconds"):
                    raise Taken
                return
            revision = db.execute(
                "SELECT COUNT(*) FROM rating WHERE slot = ? AND position = ?", (slot, position)
            ).fetchone()[0]
            db.execute(
                f"INSERT INTO rating (slot, position, revision, image, {', '.join(self.answers)})"
                f" VALUES (?, ?, ?, ?, {', '.join('?' * len(self.answers))})",
                (slot, position, revision, image, *[answers[name] for name in self.answers]),
            )

    def undo(self, slot: int, done: int) -> dict | None:
        """Withdraw the last of a rater's `done` ratings, and return it; None where there is none.

        Asked again (its reply was lost), it returns that rating and withdraws no other. Raises Taken where the others
        are not those before it, as where another window went on: its answers would be shown beside another image.
        """
        with self._transaction() as db:
            others = db.execute(
                "SELECT position FROM rating WHERE slot = ? AND position != ? AND NOT withdrawn ORDER BY position",
                (slot, done - 1),
            ).fetchall()
            if [other["position"] for other in others] != list(range(done - 1)):
                raise Taken
            row = db.execute(
                "SELECT * FROM rating WHERE slot = ? AND position = ? ORDER BY revision DESC LIMIT 1", (slot, done - 1)
            ).fetchone()
            if row and not row["withdrawn"]:
                db.execute(
                    "UPDATE rating SET withdrawn = 1 WHERE slot = ? AND position = ? AND revision = ?",
                    (slot, row["position"], row["revision"]),
                )
        return dict(row) if row else None

    def ratings(self, slot: int | None = None) -> list[dict]:
        """Standing ratings with the rater's id and pseudonym, of one rater or of all, in their order."""
        query = """SELECT rating.*, reader.id, reader.pseudonym FROM rating JOIN reader USING (slot)
                   WHERE NOT withdrawn AND (? IS NULL OR slot = ?) ORDER BY slot, position"""
        return self._rows(query, slot, slot)
