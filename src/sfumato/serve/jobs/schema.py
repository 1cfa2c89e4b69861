"""The tables of the index. Migrations (`migrations/versions`) make them; a test compares the two."""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, UniqueConstraint

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("caller", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("request", String, nullable=False),
    Column("count", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("idempotency_key", String),
    Column("body_sha256", String),
    Column("state", String, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    Column("error", String),
    Column("error_code", String),
    UniqueConstraint("caller", "idempotency_key", name="one_job_a_key"),
    Index("jobs_of_caller", "caller", "id"),
    Index("jobs_by_state", "state"),
)

pictures = Table(
    "pictures",
    metadata,
    Column("id", String, primary_key=True),
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("sha256", String, nullable=False),
    Column("size", Integer, nullable=False),
    UniqueConstraint("job_id", "number", name="one_picture_a_number"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("caller", String, nullable=False),
    Column("job_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("data", String, nullable=False),
    Index("events_of_caller", "caller", "id"),
    Index("events_of_job", "job_id", "id"),
    sqlite_autoincrement=True,  # an id is never given twice, not even after the last event was deleted
)
