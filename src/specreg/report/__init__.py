"""Tables, pictures and a page from records: what comparisons and sweeps leave in their folder, and ``specreg report``.

Reads run directories only (see ``specreg.records``) and never imports torch.

- ``runs``: records, checked; cells of a sweep; labels; which runs are repetitions of each other
- ``verdicts``, ``tables``: words and numbers
- ``figures``, ``illustrations``: curves on axes, and which of them are shown, with captions
- ``panels``, ``page``, ``page.html.j2``: pictures of these, in one HTML page or in a folder
"""
