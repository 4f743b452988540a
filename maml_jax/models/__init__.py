"""Trained models at work: as folders of plain files, adapted to images of one's own, and what they say of others."""
