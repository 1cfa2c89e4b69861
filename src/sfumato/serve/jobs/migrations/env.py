"""What Alembic runs: the store hands its connection over, already set up."""

from __future__ import annotations

from alembic import context

from sfumato.serve.jobs.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
