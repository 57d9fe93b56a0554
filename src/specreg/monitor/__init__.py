"""Watch spectra: read-only snapshots, statistics over time, a collapse detector, and actions on its verdicts."""
