"""Damage on purpose, at scale: files of every kind that the program reads, changed at random and read again.

    python -m benchmarks.fuzz seeds --out FUZZ [--data ../shared/data/slides]      sound files to damage, once
    python -m benchmarks.fuzz slides --out FUZZ --n 100000 --seed 1                slide files
    python -m benchmarks.fuzz files --out FUZZ --n 100000 --seed 1                 every other file
    python -m benchmarks.fuzz table --out FUZZ                                     what came of it
    python -m benchmarks.fuzz case --out FUZZ --seed 1 slides/jpeg.tiff/1234       one case again, with its traceback
    python -m benchmarks.fuzz.parsers --n 5000                                     damaged texts for the parsers
    python -m benchmarks.fuzz.guided json -runs=100000                             these, guided by coverage (atheris)

A case is a seed, a target and a number, and nothing else: the same command makes the same bytes. A run that was cut
goes on where it stopped.

Outcomes:
    ok            as the sound file
    typed         a WsiChatError with a way out
    partial       some tiles or rows are known to be lost, the others right
    undetectable  pixels differ, and nothing in the format could tell
    resized       the same, of a slide whose header now states other sizes
    wrong         damage that a strict decoder or a checksum shows was called sound
    untyped       another exception
    abort         a signal
    hang          over pool.HANG seconds of processor time
    memory        over pool.PEAK bytes resident
"""
