"""Studies: what data sets do to training and to searches, measured, drawn and written into a run folder."""
