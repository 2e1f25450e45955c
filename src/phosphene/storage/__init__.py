"""Files as they lie on disk: written whole or not at all, read by their types, unchanged, finite, and one writer's."""
