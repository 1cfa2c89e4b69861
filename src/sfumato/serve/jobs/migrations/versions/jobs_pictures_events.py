"""The first tables: jobs, pictures, events."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE jobs (
    id VARCHAR NOT NULL PRIMARY KEY, caller VARCHAR NOT NULL, created FLOAT NOT NULL, request VARCHAR NOT NULL,
    count INTEGER NOT NULL, priority INTEGER NOT NULL, idempotency_key VARCHAR, body_sha256 VARCHAR,
    state VARCHAR NOT NULL, started FLOAT, ended FLOAT, error VARCHAR, error_code VARCHAR,
    CONSTRAINT one_job_a_key UNIQUE (caller, idempotency_key)
);
CREATE INDEX jobs_of_caller ON jobs (caller, id);
CREATE INDEX jobs_by_state ON jobs (state);
CREATE TABLE pictures (
    id VARCHAR NOT NULL PRIMARY KEY, job_id VARCHAR NOT NULL, number INTEGER NOT NULL, created FLOAT NOT NULL,
    seed INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    sha256 VARCHAR NOT NULL, size INTEGER NOT NULL,
    CONSTRAINT one_picture_a_number UNIQUE (job_id, number),
    FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE TABLE events (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, at FLOAT NOT NULL, caller VARCHAR NOT NULL, job_id VARCHAR NOT NULL,
    kind VARCHAR NOT NULL, data VARCHAR NOT NULL
);
CREATE INDEX events_of_caller ON events (caller, id);
CREATE INDEX events_of_job ON events (job_id, id)
"""


def upgrade() -> None:
    """Make the tables."""
    for statement in _STATEMENTS.split(";"):
        op.execute(statement)
