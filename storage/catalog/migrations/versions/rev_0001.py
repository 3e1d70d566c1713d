"""The first catalog; a new one is made as the models say, so that nothing is left to do here."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing: whatever has this version has its tables."""
