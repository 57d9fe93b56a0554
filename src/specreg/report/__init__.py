"""Tables, pictures and a page from records: what comparisons and sweeps leave in their folder, and ``specreg report``.

Reads run directories only (see ``specreg.records``) and never imports torch.

``runs`` checks records and tells runs apart; ``verdicts`` and ``tables`` are words and numbers of them, ``figures`` and
``illustrations`` curves with captions, which ``panels`` and ``page`` put into a page or a folder.
"""
