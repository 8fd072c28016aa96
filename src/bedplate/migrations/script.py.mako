"""${message}"""

import sqlalchemy as sa
from alembic import op

from bedplate.kernel.db import Id, UtcTime

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
