"""The results of runs, told: a page, a model card, an upload.

In: a work directory and the evaluations kept in it. Out: one HTML page, plots, a README.md for the
hub, Ollama Modelfiles.

    config.py      what the commands are asked for
    result.py      what a run returns
    run_record.py  what it leaves in its work directory
    figures.py     figures as people read them
    page.py, plots.py, scale.py, peers.py    the page, and what others made in its plots
    card.py, ollama.py, origin.py, vision.py, wikitext.py    the card
    publish.py     the upload
"""
