"""Every table class, in one place: for the migrations and for whoever reads the schema."""

from bedplate.kernel.db import Base
from bedplate.kernel.idempotency import IdempotencyRow
from bedplate.kernel.outbox import DeadLetterRow, InboxRow, OutboxRow
from bedplate.kernel.tails import TailRow
from bedplate.modules.chat.models import BudgetRow, ChatMessageRow, UsageRow
from bedplate.modules.files.models import FileRow, PassageRow, StorageRow
from bedplate.modules.identity.models import (
    EmailTokenRow,
    RefreshTokenRow,
    ServiceKeyRow,
    SessionRow,
    UserEventRow,
    UserRow,
)
from bedplate.modules.mail.models import MailRow, PushRow
from bedplate.modules.ops.models import AuditRow, MaintenanceRow
from bedplate.modules.orders.models import OrderRow
from bedplate.modules.payments.models import PaymentRow, RefundRow, SandboxEntryRow, SlotRow

__all__ = [
    "AuditRow",
    "Base",
    "BudgetRow",
    "ChatMessageRow",
    "DeadLetterRow",
    "EmailTokenRow",
    "FileRow",
    "IdempotencyRow",
    "InboxRow",
    "MailRow",
    "MaintenanceRow",
    "OrderRow",
    "OutboxRow",
    "PassageRow",
    "PaymentRow",
    "PushRow",
    "RefreshTokenRow",
    "RefundRow",
    "SandboxEntryRow",
    "ServiceKeyRow",
    "SessionRow",
    "SlotRow",
    "StorageRow",
    "TailRow",
    "UsageRow",
    "UserEventRow",
    "UserRow",
]
