"""Commerce: users, orders, payments and notifications, each a service of one document."""
