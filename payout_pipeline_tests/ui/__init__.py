"""The Dagster UI in a real browser: ``drive.py`` clicks, ``test_ui.py`` starts what it needs and judges."""
