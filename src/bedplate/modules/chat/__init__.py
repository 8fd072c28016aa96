"""Chat: questions to models, their answers as they grow, and what they cost."""
