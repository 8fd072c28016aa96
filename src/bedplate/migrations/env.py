"""Alembic's entry: runs on the connection and in the transaction that migrations.upgrade() has opened."""

from alembic import context

from bedplate.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=False,  # the caller's transaction is the only one
)
context.run_migrations()
