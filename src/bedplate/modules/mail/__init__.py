"""Mail: rendered from templates, sent by SMTP or kept in a mailbox in the database."""
