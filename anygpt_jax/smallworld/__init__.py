"""The small world: seeded, aligned text, images, speech and music, and judges that are not our models."""
