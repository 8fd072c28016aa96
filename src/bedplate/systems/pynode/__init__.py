"""Dev-PyNode: chat with a model over HTTP and WebSocket, files, and OpenAI's API as another door to the same models."""
